/** A whole pairing with the cryptography of the deployed clients, through an honest relay and a meddling one. */
import { expect, test } from 'bun:test';
import { chacha20poly1305 } from '@noble/ciphers/chacha.js';
import { p256 } from '@noble/curves/nist.js';
import { hkdf } from '@noble/hashes/hkdf.js';
import { sha256 } from '@noble/hashes/sha2.js';
import { type Client, startRelay } from './support.ts';

const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString('base64');
const bytes = (text: string): Uint8Array => Uint8Array.from(Buffer.from(text, 'base64'));
const utf8 = (text: string): Uint8Array => new TextEncoder().encode(text);

interface Device {
  name: string;
  secretKey: Uint8Array;
  publicKey: Uint8Array;
}

interface Identity {
  publicKey: string;
  friendlyName: string;
  timestamp: string;
  selfSig: string;
}

const device = (name: string): Device => ({ name, ...p256.keygen() });

const agree = (secretKey: Uint8Array, peerKey: Uint8Array): Uint8Array =>
  p256.getSharedSecret(secretKey, peerKey).slice(1);

const sessionKeyOf = (shared: Uint8Array): Uint8Array =>
  hkdf(sha256, shared, utf8('amesh-handshake-v1'), utf8('session-key'), 32);

function encrypt(key: Uint8Array, text: string): string {
  const nonce = crypto.getRandomValues(new Uint8Array(12));
  return base64(Buffer.concat([nonce, chacha20poly1305(key, nonce).encrypt(utf8(text))]));
}

function decrypt(key: Uint8Array, payload: string): string {
  const box = bytes(payload);
  return new TextDecoder().decode(
    chacha20poly1305(key, box.subarray(0, 12)).decrypt(box.subarray(12)),
  );
}

function identify({ name, secretKey, publicKey }: Device): Identity {
  const key = base64(publicKey);
  const timestamp = new Date().toISOString();
  const selfSig = base64(p256.sign(utf8(key + name + timestamp), secretKey));
  return { publicKey: key, friendlyName: name, timestamp, selfSig };
}

const isGenuine = ({ publicKey, friendlyName, timestamp, selfSig }: Identity): boolean =>
  p256.verify(bytes(selfSig), utf8(publicKey + friendlyName + timestamp), bytes(publicKey));

function sasOf(targetKey: Uint8Array, controllerKey: Uint8Array, shared: Uint8Array): string {
  const [a, b, c] = sha256(Buffer.concat([targetKey, controllerKey, shared])) as unknown as [
    number,
    number,
    number,
  ];
  return String(((a << 16) | (b << 8) | c) % 1_000_000).padStart(6, '0');
}

const payloadOf = async (client: Client): Promise<string> => {
  const { type, payload } = await client.next();
  expect(type).toBe('data');
  return String(payload);
};

/** Both sides' half of the handshake, alike but for who sends first and whose key comes first in the SAS. */
async function handshake(
  client: Client,
  me: Device,
  role: 'target' | 'controller',
): Promise<{ sas: string; peer: Identity }> {
  const ephemeral = p256.keygen();
  const say = (payload: string) => client.send({ type: 'data', payload });
  let theirs: Uint8Array;
  if (role === 'target') {
    say(base64(ephemeral.publicKey));
    theirs = bytes(await payloadOf(client));
  } else {
    theirs = bytes(await payloadOf(client));
    say(base64(ephemeral.publicKey));
  }
  const shared = agree(ephemeral.secretKey, theirs);
  const key = sessionKeyOf(shared);
  const introduce = () => say(encrypt(key, JSON.stringify(identify(me))));
  if (role === 'controller') introduce();
  const peer = JSON.parse(decrypt(key, await payloadOf(client))) as Identity;
  if (role === 'target') introduce();
  expect(isGenuine(peer)).toBe(true);
  const [targetKey, controllerKey] =
    role === 'target'
      ? [me.publicKey, bytes(peer.publicKey)]
      : [bytes(peer.publicKey), me.publicKey];
  return { sas: sasOf(targetKey, controllerKey, shared), peer };
}

/** What a socket takes in, noted on the way. */
function overheard(...clients: Client[]): string[] {
  const frames: string[] = [];
  for (const { ws } of clients)
    ws.addEventListener('message', ({ data }) => frames.push(String(data)));
  return frames;
}

test('two devices pair, their SAS agree, and the relay saw nothing but ciphertext after the keys', async () => {
  const relay = await startRelay();
  const { target, controller } = await relay.pair();
  const carried = overheard(target, controller);
  const [server, laptop] = [device('server-in-the-cellar'), device('laptop-on-the-desk')];
  const [ofTarget, ofController] = await Promise.all([
    handshake(target, server, 'target'),
    handshake(controller, laptop, 'controller'),
  ]);
  expect(ofTarget.sas).toMatch(/^\d{6}$/);
  expect(ofTarget.sas).toBe(ofController.sas);
  expect(ofTarget.peer.publicKey).toBe(base64(laptop.publicKey));
  expect(ofController.peer.friendlyName).toBe('server-in-the-cellar');

  target.send({ type: 'data', payload: 'sas_confirmed' });
  target.close();
  await controller.expect({ type: 'data', payload: 'sas_confirmed' });
  await controller.expectError('peer_disconnected');

  const payloads = carried.map(
    (frame) => (JSON.parse(frame) as { payload?: string }).payload ?? '',
  );
  expect(payloads.filter((payload) => payload.length > 44)).toHaveLength(2);
  for (const secret of [
    server.name,
    laptop.name,
    base64(server.publicKey),
    base64(laptop.publicKey),
    'friendlyName',
  ]) {
    for (const payload of payloads) {
      expect(payload).not.toContain(secret);
      expect(Buffer.from(payload, 'base64').toString('latin1')).not.toContain(secret);
    }
  }
});

test('a relay that swaps the ephemeral keys reads everything, and is given away by the SAS', async () => {
  const relay = await startRelay();
  const toTarget = await relay.pair('111111');
  const toController = await relay.pair('222222');
  // The meddler sits between two honest pairings: controller of the first, target of the second.
  const [victimTarget, meddlerA] = [toTarget.target, toTarget.controller];
  const [meddlerB, victimController] = [toController.target, toController.controller];
  const meddler = p256.keygen();
  const [server, laptop] = [device('server'), device('laptop')];

  const meddling = (async () => {
    const targetKey = bytes(await payloadOf(meddlerA));
    meddlerB.send({ type: 'data', payload: base64(meddler.publicKey) });
    const controllerKey = bytes(await payloadOf(meddlerB));
    meddlerA.send({ type: 'data', payload: base64(meddler.publicKey) });
    const withTarget = sessionKeyOf(agree(meddler.secretKey, targetKey));
    const withController = sessionKeyOf(agree(meddler.secretKey, controllerKey));
    const fromController = decrypt(withController, await payloadOf(meddlerB));
    meddlerA.send({ type: 'data', payload: encrypt(withTarget, fromController) });
    const fromTarget = decrypt(withTarget, await payloadOf(meddlerA));
    meddlerB.send({ type: 'data', payload: encrypt(withController, fromTarget) });
    return [fromController, fromTarget].map((text) => (JSON.parse(text) as Identity).friendlyName);
  })();
  const [ofTarget, ofController, read] = await Promise.all([
    handshake(victimTarget, server, 'target'),
    handshake(victimController, laptop, 'controller'),
    meddling,
  ]);
  expect(read).toEqual(['laptop', 'server']);
  expect(ofTarget.sas).not.toBe(ofController.sas);
});
