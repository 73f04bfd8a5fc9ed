/** The handshake of the deployed clients (amesh 0.7), as docs/secure.md describes it: for tests, and for nothing else. */
import { chacha20poly1305 } from '@noble/ciphers/chacha.js';
import { p256 } from '@noble/curves/nist.js';
import { hkdf } from '@noble/hashes/hkdf.js';
import { sha256 } from '@noble/hashes/sha2.js';

export const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString('base64');
export const bytes = (text: string): Uint8Array => Uint8Array.from(Buffer.from(text, 'base64'));
const utf8 = (text: string): Uint8Array => new TextEncoder().encode(text);

export interface Device {
  name: string;
  secretKey: Uint8Array;
  publicKey: Uint8Array;
}

export interface Identity {
  publicKey: string;
  friendlyName: string;
  timestamp: string;
  selfSig: string;
}

export const device = (name: string): Device => ({ name, ...p256.keygen() });

export const agree = (secretKey: Uint8Array, peerKey: Uint8Array): Uint8Array =>
  p256.getSharedSecret(secretKey, peerKey).slice(1);

export const sessionKeyOf = (shared: Uint8Array): Uint8Array =>
  hkdf(sha256, shared, utf8('amesh-handshake-v1'), utf8('session-key'), 32);

export function encrypt(key: Uint8Array, text: string): string {
  const nonce = crypto.getRandomValues(new Uint8Array(12));
  return base64(Buffer.concat([nonce, chacha20poly1305(key, nonce).encrypt(utf8(text))]));
}

export function decrypt(key: Uint8Array, payload: string): string {
  const box = bytes(payload);
  return new TextDecoder().decode(
    chacha20poly1305(key, box.subarray(0, 12)).decrypt(box.subarray(12)),
  );
}

export function identify({ name, secretKey, publicKey }: Device): Identity {
  const key = base64(publicKey);
  const timestamp = new Date().toISOString();
  const selfSig = base64(p256.sign(utf8(key + name + timestamp), secretKey));
  return { publicKey: key, friendlyName: name, timestamp, selfSig };
}

const isGenuine = ({ publicKey, friendlyName, timestamp, selfSig }: Identity): boolean =>
  p256.verify(bytes(selfSig), utf8(publicKey + friendlyName + timestamp), bytes(publicKey));

export function sasOf(
  targetKey: Uint8Array,
  controllerKey: Uint8Array,
  shared: Uint8Array,
): string {
  const [a, b, c] = sha256(Buffer.concat([targetKey, controllerKey, shared])) as unknown as [
    number,
    number,
    number,
  ];
  return String(((a << 16) | (b << 8) | c) % 1_000_000).padStart(6, '0');
}

/** What carries payloads to the other side. */
export interface Line {
  say: (payload: string) => void;
  hear: () => Promise<string>;
}

/** Both sides' half of the handshake, alike but for who sends first and whose key comes first in the SAS. */
export async function handshake(
  { say, hear }: Line,
  me: Device,
  role: 'target' | 'controller',
): Promise<{ sas: string; peer: Identity }> {
  const ephemeral = p256.keygen();
  let theirs: Uint8Array;
  if (role === 'target') {
    say(base64(ephemeral.publicKey));
    theirs = bytes(await hear());
  } else {
    theirs = bytes(await hear());
    say(base64(ephemeral.publicKey));
  }
  const shared = agree(ephemeral.secretKey, theirs);
  const key = sessionKeyOf(shared);
  const introduce = () => say(encrypt(key, JSON.stringify(identify(me))));
  if (role === 'controller') introduce();
  const peer = JSON.parse(decrypt(key, await hear())) as Identity;
  if (role === 'target') introduce();
  if (!isGenuine(peer)) throw new Error('the identity is not its own');
  const [targetKey, controllerKey] =
    role === 'target'
      ? [me.publicKey, bytes(peer.publicKey)]
      : [bytes(peer.publicKey), me.publicKey];
  return { sas: sasOf(targetKey, controllerKey, shared), peer };
}
