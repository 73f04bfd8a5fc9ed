/**
 * The messages between instances, through Redis. Redis delivers to each subscriber in order, and loses a message only
 * together with the subscriber's connection, which the subscriber notices. So nothing is numbered or acknowledged.
 */
import * as z from 'zod/mini';

const text = z.string();
const item = z.union([
  // Asks the owner of a claim to let a socket in: the link, the announcement (empty for a session), the claim, and the
  // client that limits count the socket for.
  z.tuple([z.literal('open'), text, text, text, text]),
  z.tuple([
    z.enum([
      'frame', // a frame, and its length in bytes as received
      'opened', // the owner has let the socket in
      'done', // the client sent `done`
      'close', // from a tunnel: close both peers; from a guest: close the socket. With the reason
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

/** The instance that sends it, and its items, in order. */
const message = z.tuple([text, z.array(item)]);

/** Reads a message of another instance. Returns undefined if it is none. */
export function readMessage(json: string): z.infer<typeof message> | undefined {
  try {
    return message.safeParse(JSON.parse(json)).data;
  } catch {
    return undefined;
  }
}
