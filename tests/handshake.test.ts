/** A whole pairing with the cryptography of the deployed clients, through an honest relay and a hostile one. */
import { expect, test } from 'bun:test';
import { p256 } from '@noble/curves/nist.js';
import {
  agree,
  base64,
  bytes,
  decrypt,
  type Device,
  device,
  encrypt,
  handshake as handshakeOf07,
  type Identity,
  sessionKeyOf,
} from './amesh-0.7.ts';
import { type Client, startRelay } from './support.ts';

const payloadOf = async (client: Client): Promise<string> => {
  const { type, payload } = await client.next();
  expect(type).toBe('data');
  return String(payload);
};

/** One side of the handshake, over a socket of the relay. */
const handshake = (client: Client, me: Device, role: 'target' | 'controller') =>
  handshakeOf07(
    {
      say: (payload) => client.send({ type: 'data', payload }),
      hear: () => payloadOf(client),
    },
    me,
    role,
  );

/** Records the frames that a socket receives. */
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

test('a relay that replaces the ephemeral keys reads everything, but the SAS differ', async () => {
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
