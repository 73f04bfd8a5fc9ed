/** What a client may send: one schema for each message type. `PROTOCOL.md` explains what the messages mean. */
import * as z from 'zod/mini';

const otc = z.string().check(z.regex(/^[0-9]{6}$/));
// The protocol counts a jti in code points. Counting takes time, so a text that is far too long is refused before that.
const jti = z.string().check(
  z.refine((text) => text.length <= 256, { abort: true }),
  z.minLength(1),
  z.maxLength(128),
);

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
      publicKey: z.optional(z.string()),
      controllerPubKey: z.optional(z.string()),
      controllerSig: z.string(),
    })
    .check(z.refine((ack) => ack.publicKey !== undefined || ack.controllerPubKey !== undefined)),
  bootstrap_reject: z.object({
    type: z.literal('bootstrap_reject'),
    jti,
    error: z.optional(z.string()),
  }),
} as const;

/** A message as a client sent it, checked. */
export type ClientMessage = z.infer<(typeof clientMessages)[keyof typeof clientMessages]>;
