/** What a client may say. Apart from the rest of the protocol, since zod takes as long to load as all the relay. */
import * as z from 'zod/mini';

const otc = z.string().check(z.regex(/^[0-9]{6}$/));
/** Its length is in code points, which take their time to count: only where there can't be too many. */
const jti = z.string().check(
  z.refine((text) => text.length <= 256, { abort: true }),
  z.minLength(1),
  z.maxLength(128),
);

/** What a client may send, by the frame's `type`. Unnamed fields are dropped. */
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

type ClientMessages = typeof clientMessages;
export type ClientMessage = {
  [T in keyof ClientMessages]: z.infer<ClientMessages[T]>;
}[keyof ClientMessages];
