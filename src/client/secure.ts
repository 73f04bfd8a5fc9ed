/**
 * Secure pairing, channel and bootstrap, for Bun, Node.js 22 and browsers: even a hostile relay can neither read nor
 * change messages. Built only on the plain client and WebCrypto. docs/secure.md describes every byte of the protocol.
 *
 * @example
 * // The device that waits:
 * const channel = await pairAsTarget('wss://relay.example.com/ws', {
 *   showCode: (code) => show(`Type ${code} on the other device`),
 *   askDigits: () => prompt('Which digits does it show?'),
 * });
 * await channel.send({ hello: 'controller' });
 *
 * // The other one:
 * const channel = await pairAsController('wss://relay.example.com/ws', code, { showDigits: show });
 * console.log(await channel.receive());
 */
import { fromBase64Url, toBase64Url } from './base64.ts';
import type { SecureChannel } from './secure-channel.ts';
import { announce, connect, type ConnectOptions, generateCode, listen, watch } from './client.ts';
import { checkArgument, RelayError, type RelayErrorCode, traced } from './errors.ts';
import { type Answer, asController, asTarget, encodeIdentity } from './handshake.ts';
import { timeLeft } from './inbox.ts';
import { bootstrapKeys, sign, verify } from './keys.ts';

export { type ConnectOptions, RelayError, type RelayErrorCode, type SecureChannel };

/** A relay gives a code 30 s, and then a pairing five minutes. */
const PAIRING_TIMEOUT_MS = 330_000;
const TOKEN_BYTES = 32;
const MAX_KEY_CHARS = 16_384;

/** Options of both sides of a pairing. `timeoutMs` is for the whole pairing, and 330,000 by default. */
export interface PairingOptions extends ConnectOptions {
  /**
   * What this device tells the other about itself, such as its name and public key: any JSON value of up to 16,384
   * bytes. It is sent when both sides are authenticated, and arrives as `channel.peerIdentity`.
   */
  identity?: unknown;
}

/** Options of the device that waits. */
export interface TargetOptions extends PairingOptions {
  /** Called once with the code that a person must type on the other device: `482916-730514`. It is valid for 30 s. */
  showCode: (code: string) => void;
  /**
   * Called once. Returns the six digits that the other device shows, as the person typed them; spaces and hyphens are
   * allowed. `undefined`, `null` or an error cancels the pairing.
   * @param signal Aborted when the answer is no longer needed: stop asking the person then.
   */
  askDigits: (signal: AbortSignal) => Answer | Promise<Answer>;
}

/** Options of the device where the code is typed. */
export interface ControllerOptions extends PairingOptions {
  /** Called once with the six digits that a person must type on the target. */
  showDigits: (digits: string) => void;
}

/**
 * Shows a code, waits for the other device, and asks the person for the digits that the other device shows.
 *
 * @param url The relay's WebSocket, such as `wss://relay.example.com/ws`.
 * @returns The channel to the other device. It is certain that both have paired.
 * @throws {RelayError} `digits_mismatch`, `digits_malformed`, `code_mismatch`, `cancelled`: see the message; the other
 *   side gets the same error. `otc_expired`: nobody came, or a step took too long. `not_secure`: the other side speaks
 *   another protocol. `not_authentic`: somebody changed a message. `unconfirmed`: this side has not paired, the other
 *   may have. `peer_disconnected` and other ends of a connection. Only with `unconfirmed`, one side may have paired.
 */
export function pairAsTarget(url: string | URL, options: TargetOptions): Promise<SecureChannel> {
  return traced(async () => {
    const { token, showCode, askDigits } = options;
    const rest = timeLeft(options, PAIRING_TIMEOUT_MS);
    const identity = encodeIdentity(options.identity);
    const receipt = generateCode();
    let otc = '';
    const pipe = await listen(url, {
      ...rest(),
      token,
      onCode: (code) => {
        otc = code;
        showCode(`${code}-${receipt}`);
      },
    });
    return asTarget(pipe, { otc, receipt, identity, askDigits }, rest);
  });
}

/**
 * Joins the device that shows the code, at the same relay, and shows the digits that a person must type there.
 *
 * @param code The twelve digits that the other device shows, as typed: spaces and hyphens are allowed.
 * @returns The channel to the other device, when the right digits have been typed there.
 * @throws {RelayError} `invalid_code`: these are not twelve digits. `otc_not_found`: nobody waits on this code.
 *   `code_mismatch`: its second half is wrong. `peer_already_connected`: a stranger connected first; this may be an
 *   attack. Otherwise as {@link pairAsTarget}. If it throws, this side has not paired.
 */
export function pairAsController(
  url: string | URL,
  code: string,
  options: ControllerOptions,
): Promise<SecureChannel> {
  return traced(async () => {
    const { token, showDigits } = options;
    const rest = timeLeft(options, PAIRING_TIMEOUT_MS);
    const identity = encodeIdentity(options.identity);
    const [, otc, receipt] =
      /^([0-9]{6})([0-9]{6})$/.exec(String(code).replaceAll(/[\s-]/g, '')) ?? [];
    if (otc === undefined || receipt === undefined) throw new RelayError('invalid_code');
    const pipe = await connect(url, otc, { ...rest(), token });
    return asController(pipe, { otc, receipt, identity, showDigits }, rest);
  });
}

/**
 * Makes the secret for one boot of one machine. Give it to the machine, for example in its environment; its controller
 * keeps it until the machine has booted. It is never sent to the relay.
 *
 * @returns 43 characters of base64url: 32 random bytes.
 */
export const createBootstrapToken = (): string =>
  toBase64Url(crypto.getRandomValues(new Uint8Array(TOKEN_BYTES)));

/** Options of both sides of a bootstrap. */
export interface BootstrapOptions extends ConnectOptions {
  /** This side's public key, in any form: up to 16,384 characters. The relay sees it. */
  publicKey: string;
}

/** Options of the controller's side of a bootstrap. `timeoutMs` is 310,000 by default. */
export interface BootstrapWatchOptions extends BootstrapOptions {
  /** Called once, when the relay has accepted the watch: the machine may boot now. */
  onWaiting?: (() => void) | undefined;
}

/**
 * The machine's side: announces its public key, authenticated with the token.
 *
 * @param token What {@link createBootstrapToken} made for it.
 * @returns The controller's public key. Its sender knows the token.
 * @throws {RelayError} `no_watcher`: the controller does not wait yet; the token is still good, try again later.
 *   `token_already_used`: never try again. `not_authentic`: the sender of the answer does not know the token.
 *   `invalid_argument`, `rejected`, and other ends of a connection.
 */
export function bootstrapAsTarget(
  url: string | URL,
  token: string,
  { publicKey, ...options }: BootstrapOptions,
): Promise<string> {
  return traced(async () => {
    const { jti, announcement, answer } = await keysOf(token, publicKey);
    const proof = await sign(announcement, jti, publicKey);
    const introduction = { jti, token: proof, targetPubKey: publicKey };
    const { controllerPubKey, controllerSig } = await announce(url, introduction, options);
    if (await verify(answer, controllerSig, jti, publicKey, controllerPubKey)) {
      return controllerPubKey;
    }
    throw new RelayError('not_authentic', 'the sender of the answer does not know the token');
  });
}

/**
 * The controller's side: waits for the machine that boots with the token, and answers it.
 *
 * @param token What {@link createBootstrapToken} made. Forget it afterwards.
 * @returns The machine's public key. Its sender knows the token.
 * @throws {RelayError} `watch_expired`: no machine came. `jti_already_watched`: somebody waits for it already.
 *   `not_authentic`: the sender of the announcement does not know the token, and was refused. Only a hostile relay can
 *   cause this: make a new token. `not_watching`: the machine left before it was answered.
 */
export function bootstrapAsController(
  url: string | URL,
  token: string,
  { publicKey, ...options }: BootstrapWatchOptions,
): Promise<string> {
  return traced(async () => {
    const { jti, announcement, answer } = await keysOf(token, publicKey);
    const machine = await watch(url, jti, options);
    const { targetPubKey } = machine;
    if (!(await verify(announcement, machine.token, jti, targetPubKey))) {
      await machine.reject('not_authentic').catch(() => {});
      throw new RelayError(
        'not_authentic',
        'the sender of the announcement does not know the token',
      );
    }
    const controllerSig = await sign(answer, jti, targetPubKey, publicKey);
    await machine.acknowledge({ publicKey, controllerSig });
    return targetPubKey;
  });
}

async function keysOf(token: string, publicKey: string) {
  checkArgument(
    typeof publicKey === 'string' && publicKey.length <= MAX_KEY_CHARS && publicKey.isWellFormed(),
    `publicKey must be a text of at most ${MAX_KEY_CHARS} characters`,
  );
  const secret = typeof token === 'string' ? fromBase64Url(token) : undefined;
  const isToken = secret?.length === TOKEN_BYTES;
  checkArgument(isToken, 'a bootstrap token must be 43 characters of base64url');
  return bootstrapKeys(secret);
}
