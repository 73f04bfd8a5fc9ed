/**
 * The cryptography of a secure pairing, without a connection: what both sides compute from their messages.
 * docs/secure.md describes it for other languages, and docs/secure-vectors.json has test vectors.
 */
import type { Bytes } from './base64.ts';
import { RelayError } from './errors.ts';

/** The beginning of every label. Another version would use another one, so that no value is valid in both. */
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

/** Puts each part after its length (four bytes, big-endian), so that different parts never give the same bytes. */
export function framed(...parts: Uint8Array[]): Bytes {
  return concat(
    ...parts.flatMap((part) => {
      const length = new Uint8Array(4);
      new DataView(length.buffer).setUint32(0, part.length);
      return [length, part];
    }),
  );
}

/** Compares in constant time. */
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

/** A key pair for one pairing only. Its private key cannot be exported. */
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

/** The hash with which the target commits to its key before it has received the controller's key. */
export const commitmentTo = (otc: string, targetKey: Bytes, nonce: Bytes): Promise<Bytes> =>
  hash('commitment', utf8(otc), targetKey, nonce);

/** The contents of the three plain messages. */
export interface Transcript {
  /** The six digits that the relay knows. */
  otc: string;
  /** 32 bytes, the target's first message. */
  commitment: Bytes;
  /** 65 bytes each. */
  controllerKey: Bytes;
  targetKey: Bytes;
  /** 32 bytes, which keep the target's key hidden until it is revealed. */
  nonce: Bytes;
}

/** The shared result. Both sides have the same one only if they saw the same messages. */
export interface Agreement {
  /** Six digits for people to compare. */
  digits: string;
  sending: CryptoKey;
  receiving: CryptoKey;
}

/**
 * Computes the shared result from the transcript and this side's private key.
 * @throws {RelayError} `not_authentic`: what the target revealed is not what it committed to, or the other side's key
 *   is not a point of the curve.
 */
export async function agree(
  role: Role,
  privateKey: CryptoKey,
  { otc, commitment, controllerKey, targetKey, nonce }: Transcript,
): Promise<Agreement> {
  if (!areEqual(commitment, await commitmentTo(otc, targetKey, nonce))) {
    throw new RelayError(
      'not_authentic',
      'the other side revealed a different key than it committed to',
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
    // WebCrypto refuses points that are not on the curve. The point at infinity cannot be written in this form.
    return await crypto.subtle.importKey(
      'raw',
      point,
      { name: 'ECDH', namedCurve: 'P-256' },
      true,
      [],
    );
  } catch {
    throw new RelayError('not_authentic', 'the other side’s key is not a point of P-256');
  }
}

/** Uses 64 bits of the hash, so that none of the million numbers is noticeably more likely than another. */
async function digitsOf(transcript: Bytes): Promise<string> {
  const number = new DataView((await hash('digits', transcript)).buffer).getBigUint64(0);
  return String(number % 1_000_000n).padStart(6, '0');
}

/** The nonce of a record. It counts from 0 in each direction, so it is never used twice and reveals a wrong order. */
function nonceOf(count: number): Bytes {
  const nonce = new Uint8Array(12);
  new DataView(nonce.buffer).setBigUint64(4, BigInt(count));
  return nonce;
}

/** Encrypts the `count`-th record of a direction: AES-256-GCM, with the tag after the ciphertext. */
export async function seal(key: CryptoKey, count: number, record: Bytes): Promise<Bytes> {
  const sealed = await crypto.subtle.encrypt({ name: 'AES-GCM', iv: nonceOf(count) }, key, record);
  return new Uint8Array(sealed);
}

/** Decrypts a record. @throws {RelayError} `not_authentic`: it is not the `count`-th record sealed with this key. */
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

/** The keys that a machine and its controller derive from their token. Nobody else knows the token. */
export interface BootstrapKeys {
  /** The id that the relay sees. It reveals nothing about the token. */
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

/** HMAC-SHA-256 of texts, each after its length. */
export async function sign(key: CryptoKey, ...texts: string[]): Promise<Bytes> {
  return new Uint8Array(await crypto.subtle.sign('HMAC', key, framed(...texts.map(utf8))));
}

export const verify = (key: CryptoKey, mac: Bytes, ...texts: string[]): Promise<boolean> =>
  crypto.subtle.verify('HMAC', key, mac, framed(...texts.map(utf8)));
