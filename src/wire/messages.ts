/** What a client may send: one schema for each message type. `PROTOCOL.md` explains what the messages mean. */
import * as z from 'zod';

const otc = z.string().regex(/^[0-9]{6}$/);
// The protocol counts a jti in code points. Counting them takes time, so a text that is too long by far is refused before.
const jti = z
  .string()
  .refine((text) => text.length <= 256, { abort: true })
  .min(1)
  .max(128);

/** The schema of a message, by its `type`. Fields that a schema does not name are dropped. */
export const clientMessages = {
  listen: z.object({ type: z.literal('listen'), otc }),
  connect: z.object({ type: z.literal('connect'), otc }),
  data: z.object({ type: z.literal('data'), payload: z.string() }),
  done: z.object({ type: z.literal('done') }),
  bootstrap_watch: z.object({ type: z.literal('bootstrap_watch'), jti }),
  bootstrap_init: z.object({
    type: z.literal('bootstrap_init'),
    jti,
    token: z.string(),
    targetPubKey: z.string(),
  }),
  bootstrap_ack: z
    .object({
      type: z.literal('bootstrap_ack'),
      jti,
      publicKey: z.string().optional(),
      controllerPubKey: z.string().optional(),
      controllerSig: z.string(),
    })
    .refine((ack) => ack.publicKey !== undefined || ack.controllerPubKey !== undefined),
  bootstrap_reject: z.object({
    type: z.literal('bootstrap_reject'),
    jti,
    error: z.string().optional(),
  }),
} as const;

type ClientMessages = typeof clientMessages;
/** A message as a client sent it, checked. */
export type ClientMessage = {
  [T in keyof ClientMessages]: z.infer<ClientMessages[T]>;
}[keyof ClientMessages];
