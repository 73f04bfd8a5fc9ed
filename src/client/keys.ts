/**
 * The cryptography of a secure pairing, without a connection: what both sides compute from their messages.
 * docs/secure.md describes it for other languages, and docs/secure-vectors.json has test vectors.
 */
import { type Bytes, fromBase64, toBase64 } from './base64.ts';
import { RelayError } from './errors.ts';

/** The beginning of every label. Another version would use another one, so that no value is valid in both. */
const PROTOCOL = 'amesh-secure-1';

/** The algorithm of the ephemeral keys. */
const ecdh = { name: 'ECDH', namedCurve: 'P-256' };

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
function framed(...parts: Uint8Array[]): Bytes {
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
  const { privateKey, publicKey } = await crypto.subtle.generateKey(ecdh, false, ['deriveKey']);
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
  role: 'target' | 'controller',
  privateKey: CryptoKey,
  { otc, commitment, controllerKey, targetKey, nonce }: Transcript,
): Promise<Agreement> {
  if (!areEqual(commitment, await commitmentTo(otc, targetKey, nonce))) {
    throw new RelayError(
      'not_authentic',
      'the other side revealed a different key than it committed to',
    );
  }
  const said = [utf8(otc), commitment, controllerKey, targetKey, nonce];
  const transcript = await hash('transcript', ...said);
  const peer = role === 'target' ? 'controller' : 'target';
  const point = peer === 'target' ? targetKey : controllerKey;
  // WebCrypto refuses points that are not on the curve. The point at infinity cannot be written in this form.
  const peerKey = await crypto.subtle.importKey('raw', point, ecdh, true, []).catch(() => {
    throw new RelayError('not_authentic', 'the other side’s key is not a point of P-256');
  });
  const exchange = { name: 'ECDH', public: peerKey };
  const secret = await crypto.subtle.deriveKey(exchange, privateKey, 'HKDF', false, ['deriveKey']);
  const aes = { name: 'AES-GCM', length: 256 };
  const keyFor = (label: string, usage: 'encrypt' | 'decrypt'): Promise<CryptoKey> =>
    crypto.subtle.deriveKey(hkdf(label, transcript), secret, aes, false, [usage]);
  return {
    digits: await digitsOf(transcript),
    sending: await keyFor(`${role} to ${peer}`, 'encrypt'),
    receiving: await keyFor(`${peer} to ${role}`, 'decrypt'),
  };
}

/** HKDF under a label of this protocol. */
const hkdf = (label: string, salt = new Uint8Array()) => ({
  name: 'HKDF',
  hash: 'SHA-256',
  salt,
  info: utf8(`${PROTOCOL} ${label}`),
});

/** Uses 64 bits of the hash, so that none of the million numbers is noticeably more likely than another. */
async function digitsOf(transcript: Bytes): Promise<string> {
  const number = new DataView((await hash('digits', transcript)).buffer).getBigUint64(0);
  return String(number % 1_000_000n).padStart(6, '0');
}

/** The algorithm for the `count`-th record of a direction. No nonce is used twice, and a wrong order is noticed. */
function gcm(count: number) {
  const iv = new Uint8Array(12);
  new DataView(iv.buffer).setBigUint64(4, BigInt(count));
  return { name: 'AES-GCM', iv };
}

/** Encrypts a record: AES-256-GCM, with the tag after the ciphertext. */
export async function seal(key: CryptoKey, count: number, record: Bytes): Promise<Bytes> {
  return new Uint8Array(await crypto.subtle.encrypt(gcm(count), key, record));
}

/** Decrypts a record. @throws {RelayError} `not_authentic`: it is not the `count`-th record sealed with this key. */
export async function open(key: CryptoKey, count: number, sealed: Bytes): Promise<Bytes> {
  try {
    return new Uint8Array(await crypto.subtle.decrypt(gcm(count), key, sealed));
  } catch {
    throw new RelayError('not_authentic');
  }
}

/**
 * What a machine and its controller derive from their token, which nobody else knows: the id that the relay sees, which
 * reveals nothing about the token, and a key for the proof of each message.
 *
 * @param token 32 random bytes.
 */
export async function bootstrapKeys(token: Bytes) {
  const secret = await crypto.subtle.importKey('raw', token, 'HKDF', false, [
    'deriveBits',
    'deriveKey',
  ]);
  const hmac = { name: 'HMAC', hash: 'SHA-256', length: 256 };
  const keyFor = (message: string): Promise<CryptoKey> =>
    crypto.subtle.deriveKey(hkdf(`bootstrap ${message}`), secret, hmac, false, ['sign', 'verify']);
  const id = new Uint8Array(await crypto.subtle.deriveBits(hkdf('bootstrap id'), secret, 128));
  return {
    jti: `bt_${Array.from(id, (byte) => byte.toString(16).padStart(2, '0')).join('')}`,
    announcement: await keyFor('announcement'),
    answer: await keyFor('answer'),
  };
}

/** HMAC-SHA-256 of texts, each after its length, in base64. */
export const sign = async (key: CryptoKey, ...texts: string[]): Promise<string> =>
  toBase64(new Uint8Array(await crypto.subtle.sign('HMAC', key, framed(...texts.map(utf8)))));

/** Whether a text is what {@link sign} makes of these texts. */
export async function verify(key: CryptoKey, mac: string, ...texts: string[]): Promise<boolean> {
  const bytes = fromBase64(mac);
  if (!bytes) return false;
  return crypto.subtle.verify('HMAC', key, bytes, framed(...texts.map(utf8)));
}
