/**
 * The cryptography of a secure pairing, without a connection: what both sides compute from what was said. docs/secure.md
 * has the same for other languages, docs/secure-vectors.json the values.
 */
import type { Bytes } from './base64.ts';
import { RelayError } from './errors.ts';

/** What every label begins with. Another version would have another, so that no value fits both. */
const PROTOCOL = 'amesh-secure-1';

export type Role = 'target' | 'controller';

export const utf8 = (text: string): Bytes => new TextEncoder().encode(text);

export function concat(...parts: Uint8Array[]): Bytes {
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** Each part behind its length in four bytes, big-endian: different parts never make the same bytes. */
export function framed(...parts: Uint8Array[]): Bytes {
  return concat(
    ...parts.flatMap((part) => {
      const length = new Uint8Array(4);
      new DataView(length.buffer).setUint32(0, part.length);
      return [length, part];
    }),
  );
}

/** In a time that does not depend on where they differ. */
export function areEqual(one: Uint8Array, other: Uint8Array): boolean {
  let difference = one.length ^ other.length;
  for (const [i, byte] of one.entries()) difference |= byte ^ (other[i] ?? 0);
  return difference === 0;
}

/** SHA-256 of the parts under a label of this protocol. */
async function hash(label: string, ...parts: Uint8Array[]): Promise<Bytes> {
  const input = framed(utf8(`${PROTOCOL} ${label}`), ...parts);
  return new Uint8Array(await crypto.subtle.digest('SHA-256', input));
}

/** A key pair for one pairing alone. Its private half cannot be taken out of it. */
export interface Ephemeral {
  privateKey: CryptoKey;
  /** The point, uncompressed: 65 bytes. */
  publicKey: Bytes;
}

export async function newEphemeral(): Promise<Ephemeral> {
  const { privateKey, publicKey } = await crypto.subtle.generateKey(
    { name: 'ECDH', namedCurve: 'P-256' },
    false,
    ['deriveKey'],
  );
  return { privateKey, publicKey: new Uint8Array(await crypto.subtle.exportKey('raw', publicKey)) };
}

/** What the target commits itself to before it knows anything of the controller. */
export const commitmentTo = (otc: string, targetKey: Bytes, nonce: Bytes): Promise<Bytes> =>
  hash('commitment', utf8(otc), targetKey, nonce);

/** Everything that was said before there were keys. */
export interface Transcript {
  /** The six digits that the relay knows. */
  otc: string;
  /** 32 bytes, the target's first word. */
  commitment: Bytes;
  /** 65 bytes each. */
  controllerKey: Bytes;
  targetKey: Bytes;
  /** 32 bytes, which keep the target's key hidden until it is revealed. */
  nonce: Bytes;
}

/** What both sides have in common if, and only if, they took part in the same exchange. */
export interface Agreement {
  /** Six digits for people to compare. */
  digits: string;
  sending: CryptoKey;
  receiving: CryptoKey;
}

/**
 * What the transcript, together with one's own private key, comes to.
 * @throws {RelayError} `not_authentic`: what the target revealed is not what it committed to, or the other side's key is
 *   no point of the curve.
 */
export async function agree(
  role: Role,
  privateKey: CryptoKey,
  { otc, commitment, controllerKey, targetKey, nonce }: Transcript,
): Promise<Agreement> {
  if (!areEqual(commitment, await commitmentTo(otc, targetKey, nonce))) {
    throw new RelayError(
      'not_authentic',
      'the other side revealed another key than it committed to',
    );
  }
  const transcript = await hash(
    'transcript',
    utf8(otc),
    commitment,
    controllerKey,
    targetKey,
    nonce,
  );
  const peerKey = await importPoint(role === 'target' ? controllerKey : targetKey);
  const secret = await crypto.subtle.deriveKey(
    { name: 'ECDH', public: peerKey },
    privateKey,
    'HKDF',
    false,
    ['deriveKey'],
  );
  const keyFor = (label: string, usage: 'encrypt' | 'decrypt'): Promise<CryptoKey> =>
    crypto.subtle.deriveKey(
      { name: 'HKDF', hash: 'SHA-256', salt: transcript, info: utf8(`${PROTOCOL} ${label}`) },
      secret,
      { name: 'AES-GCM', length: 256 },
      false,
      [usage],
    );
  const [mine, theirs] =
    role === 'target'
      ? ['target to controller', 'controller to target']
      : ['controller to target', 'target to controller'];
  return {
    digits: await digitsOf(transcript),
    sending: await keyFor(mine as string, 'encrypt'),
    receiving: await keyFor(theirs as string, 'decrypt'),
  };
}

async function importPoint(point: Bytes): Promise<CryptoKey> {
  try {
    // WebCrypto refuses what is not on the curve, and the point at infinity has no such form.
    return await crypto.subtle.importKey(
      'raw',
      point,
      { name: 'ECDH', namedCurve: 'P-256' },
      true,
      [],
    );
  } catch {
    throw new RelayError('not_authentic', 'the other side’s key is no point of P-256');
  }
}

/** The first 64 bits, so that of a million numbers none is noticeably likelier than another. */
async function digitsOf(transcript: Bytes): Promise<string> {
  const number = new DataView((await hash('digits', transcript)).buffer).getBigUint64(0);
  return String(number % 1_000_000n).padStart(6, '0');
}

/** Counts from 0 in each direction, so that no nonce comes twice under a key, and none out of turn. */
function nonceOf(count: number): Bytes {
  const nonce = new Uint8Array(12);
  new DataView(nonce.buffer).setBigUint64(4, BigInt(count));
  return nonce;
}

/** The `count`-th record of a direction: AES-256-GCM, the tag behind the ciphertext. */
export async function seal(key: CryptoKey, count: number, record: Bytes): Promise<Bytes> {
  const sealed = await crypto.subtle.encrypt({ name: 'AES-GCM', iv: nonceOf(count) }, key, record);
  return new Uint8Array(sealed);
}

/** @throws {RelayError} `not_authentic`: this is not the `count`-th record that was sealed with this key. */
export async function open(key: CryptoKey, count: number, sealed: Bytes): Promise<Bytes> {
  try {
    const record = await crypto.subtle.decrypt(
      { name: 'AES-GCM', iv: nonceOf(count) },
      key,
      sealed,
    );
    return new Uint8Array(record);
  } catch {
    throw new RelayError('not_authentic');
  }
}

/** What a machine and its controller derive from the token that both know, and nobody between them. */
export interface BootstrapKeys {
  /** The id that the relay sees. It tells nothing of the token. */
  jti: string;
  announcement: CryptoKey;
  answer: CryptoKey;
}

/** @param token 32 random bytes. */
export async function bootstrapKeys(token: Bytes): Promise<BootstrapKeys> {
  const secret = await crypto.subtle.importKey('raw', token, 'HKDF', false, [
    'deriveBits',
    'deriveKey',
  ]);
  const hkdf = (label: string) => ({
    name: 'HKDF',
    hash: 'SHA-256',
    salt: new Uint8Array(),
    info: utf8(`${PROTOCOL} bootstrap ${label}`),
  });
  const hmac = { name: 'HMAC', hash: 'SHA-256', length: 256 };
  const keyFor = (label: string): Promise<CryptoKey> =>
    crypto.subtle.deriveKey(hkdf(label), secret, hmac, false, ['sign', 'verify']);
  const id = new Uint8Array(await crypto.subtle.deriveBits(hkdf('id'), secret, 128));
  return {
    jti: `bt_${Array.from(id, (byte) => byte.toString(16).padStart(2, '0')).join('')}`,
    announcement: await keyFor('announcement'),
    answer: await keyFor('answer'),
  };
}

/** HMAC-SHA-256 over texts, each behind its length. */
export async function sign(key: CryptoKey, ...texts: string[]): Promise<Bytes> {
  return new Uint8Array(await crypto.subtle.sign('HMAC', key, framed(...texts.map(utf8))));
}

export const verify = (key: CryptoKey, mac: Bytes, ...texts: string[]): Promise<boolean> =>
  crypto.subtle.verify('HMAC', key, mac, framed(...texts.map(utf8)));
