/**
 * What instances say to each other, through Redis. Redis delivers to each subscriber in order, and loses a message only
 * together with the subscriber's connection, which the subscriber notices. So nothing is numbered or acknowledged.
 */
import * as z from 'zod/mini';

const text = z.string();
const item = z.union([
  // A socket wants to get to what a claim stands for: the link, its announcement if it is for a watch (else empty), the
  // claim, and whom limits count the socket for.
  z.tuple([z.literal('open'), text, text, text, text]),
  z.tuple([
    z.enum([
      'frame', // a frame, and the bytes that it came as
      'opened', // the owner has let the socket in
      'done', // the client said that it is through
      'close', // the reason for which both ends, or the socket at the other end, are to be closed
      'end', // nothing more comes: the error code if the owner refused, and the number of frames that it got
      'over', // everything between the two instances has ended (the link is empty)
    ]),
    text, // the link
    text,
    z.int(),
  ]),
]);
export type Item = z.infer<typeof item>;
export type Word = Exclude<Item[0], 'open'>;

/** The instance that says it, and what it says, in order. */
const message = z.tuple([text, z.array(item)]);

/** Reads a message of another instance; undefined where it is none. */
export function readMessage(json: string): z.infer<typeof message> | undefined {
  try {
    return message.safeParse(JSON.parse(json)).data;
  } catch {
    return undefined;
  }
}
