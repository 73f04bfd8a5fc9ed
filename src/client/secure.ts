/**
 * Pairing, a channel and a bootstrap that even a hostile relay can neither read nor change, for Bun, Node.js 22 and
 * browsers. Built on the plain client and on WebCrypto alone. docs/secure.md is the protocol, to the byte.
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
import { fromBase64, fromBase64Url, toBase64, toBase64Url } from './base64.ts';
import type { SecureChannel } from './channel.ts';
import { announce, connect, type ConnectOptions, generateCode, listen, watch } from './client.ts';
import { RelayError, type RelayErrorCode, traced } from './errors.ts';
import { type Answer, asController, asTarget, encodeIdentity } from './handshake.ts';
import type { WaitOptions } from './inbox.ts';
import { bootstrapKeys, sign, verify } from './keys.ts';

export { type ConnectOptions, RelayError, type RelayErrorCode, type SecureChannel };

/** A relay gives a pairing five minutes from when the controller came, and a code half a minute before. */
const PAIRING_TIMEOUT_MS = 330_000;
const TOKEN_BYTES = 32;
const MAX_KEY_CHARS = 16_384;

/** For both sides of a pairing. `timeoutMs` is for the whole of it, and 330,000 unless given. */
export interface PairingOptions extends ConnectOptions {
  /**
   * What this device tells the other of itself, such as its name and its public key: anything that JSON can say, up to
   * 16,384 bytes of it. It goes over once both are sure, and arrives as `channel.peerIdentity`.
   */
  identity?: unknown;
}

/** For the device that waits. */
export interface TargetOptions extends PairingOptions {
  /** Called once, with what a person has to type on the other device: `482916-730514`. It lives for 30 s. */
  showCode: (code: string) => void;
  /**
   * Asked once: the six digits that the other device shows, as the person typed them, spaces and hyphens allowed.
   * Nothing (`undefined`, `null`) or an error cancels the pairing.
   * @param signal Aborted when nobody waits for the answer any more: close the question then.
   */
  askDigits: (signal: AbortSignal) => Answer | Promise<Answer>;
}

/** For the device where the code is typed. */
export interface ControllerOptions extends PairingOptions {
  /** Called once, with the six digits that a person has to type on the target. */
  showDigits: (digits: string) => void;
}

/**
 * Waits for the other device, shows the code for it, and asks the person for the digits that it shows then.
 *
 * @param url The relay's WebSocket, such as `wss://relay.example.com/ws`.
 * @returns The channel to the other device, which has paired with this one for certain.
 * @throws {RelayError} `digits_mismatch`, `digits_malformed`, `code_mismatch`, `cancelled`: as its message says, and the
 *   other side gets the same. `otc_expired`: nobody came, or somebody was too slow. `not_secure`: the other side speaks
 *   another protocol. `not_authentic`: somebody meddled. `unconfirmed`: this side has not paired, the other may have.
 *   `peer_disconnected` and whatever else ends a connection. Nobody has paired in any case but `unconfirmed`.
 */
export function pairAsTarget(url: string | URL, options: TargetOptions): Promise<SecureChannel> {
  return traced(async () => {
    const { token, showCode, askDigits } = options;
    const rest = timeLeft(options);
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
 * Joins the device that shows the code, and shows the digits that a person has to type there.
 *
 * @param url The relay's WebSocket, the same that the other device uses.
 * @param code The twelve digits that the other device shows, as typed: spaces and hyphens may stand between them.
 * @returns The channel to the other device, once the digits were typed there and are right.
 * @throws {RelayError} `invalid_code`: these are not twelve digits. `otc_not_found`: nobody waits on this code.
 *   `code_mismatch`: its second half is wrong. `peer_already_connected`: a stranger was quicker; take it for an alarm.
 *   Otherwise as {@link pairAsTarget}; in no case has this side paired.
 */
export function pairAsController(
  url: string | URL,
  code: string,
  options: ControllerOptions,
): Promise<SecureChannel> {
  return traced(async () => {
    const { token, showDigits } = options;
    const rest = timeLeft(options);
    const identity = encodeIdentity(options.identity);
    const [, otc, receipt] =
      /^([0-9]{6})([0-9]{6})$/.exec(String(code).replaceAll(/[\s-]/g, '')) ?? [];
    if (otc === undefined || receipt === undefined) throw new RelayError('invalid_code');
    const pipe = await connect(url, otc, { ...rest(), token });
    return asController(pipe, { otc, receipt, identity, showDigits }, rest);
  });
}

/** Turns one deadline for everything into what is left of it at each step. */
function timeLeft({ timeoutMs = PAIRING_TIMEOUT_MS, signal }: WaitOptions): () => WaitOptions {
  const start = performance.now();
  return () => ({ signal, timeoutMs: Math.max(timeoutMs - (performance.now() - start), 0) });
}

/**
 * Makes the secret that a machine is started with, in its environment say, and that its controller keeps until the
 * machine has booted. It is for one machine and one boot, and never passes the relay.
 *
 * @returns 43 characters of base64url: 32 random bytes.
 */
export const createBootstrapToken = (): string =>
  toBase64Url(crypto.getRandomValues(new Uint8Array(TOKEN_BYTES)));

/** For both sides of a bootstrap. */
export interface BootstrapOptions extends ConnectOptions {
  /** This side's public key, in any form: up to 16,384 characters. The relay sees it. */
  publicKey: string;
}

/** For the controller's side of a bootstrap; `timeoutMs` is 310,000 unless given. */
export interface BootstrapWatchOptions extends BootstrapOptions {
  /** Called once, when the relay knows that this side waits: the machine may boot now. */
  onWaiting?: (() => void) | undefined;
}

/**
 * The machine's side: announces its public key under the token.
 *
 * @param token What {@link createBootstrapToken} made for it.
 * @returns The controller's public key; whoever sent it knows the token.
 * @throws {RelayError} `no_watcher`: the controller does not wait yet; the token is still good, try again later.
 *   `token_already_used`: never try again. `not_authentic`: the answer is not by somebody who knows the token.
 *   `invalid_argument`, `rejected`, and whatever ends a connection.
 */
export function bootstrapAsTarget(
  url: string | URL,
  token: string,
  { publicKey, ...options }: BootstrapOptions,
): Promise<string> {
  return traced(async () => {
    const { jti, announcement, answer } = await keysOf(token, publicKey);
    const mac = await sign(announcement, jti, publicKey);
    const introduction = { jti, token: toBase64(mac), targetPubKey: publicKey };
    const { controllerPubKey, controllerSig } = await announce(url, introduction, options);
    const proof = fromBase64(controllerSig);
    if (proof && (await verify(answer, proof, jti, publicKey, controllerPubKey))) {
      return controllerPubKey;
    }
    throw new RelayError('not_authentic', 'the answer is not by somebody who knows the token');
  });
}

/**
 * The controller's side: waits for the machine that boots with the token, and answers it.
 *
 * @param token What {@link createBootstrapToken} made. Forget it afterwards.
 * @returns The machine's public key; whoever sent it knows the token.
 * @throws {RelayError} `watch_expired`: no machine came. `jti_already_watched`: somebody waits for it already.
 *   `not_authentic`: somebody who does not know the token announced itself, which only a relay that attacks can bring
 *   about, and was refused. Make a new token. `not_watching`: the machine left before it was answered.
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
    const proof = fromBase64(machine.token);
    if (!proof || !(await verify(announcement, proof, jti, targetPubKey))) {
      await machine.reject('not_authentic').catch(() => {});
      throw new RelayError(
        'not_authentic',
        'the announcement is not by a machine that knows the token',
      );
    }
    const mac = await sign(answer, jti, targetPubKey, publicKey);
    await machine.acknowledge({ publicKey, controllerSig: toBase64(mac) });
    return targetPubKey;
  });
}

async function keysOf(token: string, publicKey: string) {
  if (
    typeof publicKey !== 'string' ||
    publicKey.length > MAX_KEY_CHARS ||
    !publicKey.isWellFormed()
  ) {
    throw new RelayError(
      'invalid_argument',
      `publicKey is text of at most ${MAX_KEY_CHARS} characters`,
    );
  }
  const secret = typeof token === 'string' ? fromBase64Url(token) : undefined;
  if (secret?.length !== TOKEN_BYTES) {
    throw new RelayError('invalid_argument', 'a bootstrap token is 43 characters of base64url');
  }
  return bootstrapKeys(secret);
}
