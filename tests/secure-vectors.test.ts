/** The client must send and accept exactly the payloads of docs/secure-vectors.json. */
import { expect, test } from 'bun:test';
import type { webcrypto } from 'node:crypto';
import file from '../docs/secure-vectors.json' with { type: 'json' };
import type { Bytes } from '../src/client/base64.ts';
import { RelayError } from '../src/client/errors.ts';
import { asController, asTarget } from '../src/client/handshake.ts';
import {
  agree,
  bootstrapKeys,
  commitmentTo,
  type Ephemeral,
  open,
  sign,
} from '../src/client/keys.ts';
import { fromBase64Url } from '../src/client/base64.ts';
import { vectors } from '../tools/secure-vectors.ts';
import { type From, rest, TestPipe } from './pipes.ts';

const { pairing, forgeries, bootstrap } = file;
const bytes = (hex: string): Bytes => Uint8Array.fromHex(hex);
const utf8 = (text: string): Bytes => new TextEncoder().encode(text);

/** The key pair of a fixed private key, which WebCrypto imports as JWK. */
async function ephemeral(privateHex: string, publicHex: string): Promise<Ephemeral> {
  const base64Url = (hex: string) =>
    bytes(hex).toBase64({ alphabet: 'base64url', omitPadding: true });
  const [x, y] = [base64Url(publicHex.slice(2, 66)), base64Url(publicHex.slice(66))];
  const jwk: webcrypto.JsonWebKey = { kty: 'EC', crv: 'P-256', x, y, d: base64Url(privateHex) };
  const ecdh = { name: 'ECDH', namedCurve: 'P-256' };
  const privateKey = await crypto.subtle.importKey('jwk', jwk, ecdh, false, ['deriveKey']);
  return { privateKey, publicKey: bytes(publicHex) };
}

const transcript = {
  otc: pairing.otc,
  commitment: bytes(pairing.commitment),
  controllerKey: bytes(pairing.controllerKey),
  targetKey: bytes(pairing.targetKey),
  nonce: bytes(pairing.nonce),
};
const ephemeralOf = (role: From): Promise<Ephemeral> =>
  role === 'target'
    ? ephemeral(pairing.targetPrivate, pairing.targetKey)
    : ephemeral(pairing.controllerPrivate, pairing.controllerKey);

/** The payloads that one side sends and receives in the vectors, in their order. */
const spokenBy = (role: From): string[] =>
  [...pairing.clear, ...pairing.sealed].filter(({ from }) => from === role).map((it) => it.payload);

test('the file is what an independent implementation computes', () => {
  expect(file).toEqual(vectors());
});

test('the commitment, the digits, and every sealed record', async () => {
  const { otc, targetKey, nonce, commitment } = transcript;
  expect(await commitmentTo(otc, targetKey, nonce)).toEqual(commitment);
  for (const role of ['target', 'controller'] as const) {
    const { privateKey } = await ephemeralOf(role);
    const { digits, receiving } = await agree(role, privateKey, transcript);
    expect(digits).toBe(pairing.digits);
    const toThisSide = pairing.sealed.filter(({ from }) => from !== role);
    for (const [count, { payload, record }] of toThisSide.entries()) {
      expect(await open(receiving, count, Uint8Array.fromBase64(payload))).toEqual(bytes(record));
    }
  }
});

test('a target sends these payloads to this controller', async () => {
  const pipe = new TestPipe();
  const said: string[] = [];
  pipe.onSent = (payload) => said.push(payload);
  const heard = spokenBy('controller');
  for (const payload of heard.slice(0, 2)) pipe.arrive(payload);
  const keptAlive = Promise.withResolvers<void>();
  const pairingUp = asTarget(
    pipe,
    {
      otc: pairing.otc,
      receipt: pairing.receipt,
      identity: utf8(pairing.targetIdentity),
      ephemeral: await ephemeralOf('target'),
      nonce: bytes(pairing.nonce),
      keepAliveMs: 100,
      askDigits: async () => {
        // The vectors have one keep-alive here.
        pipe.onSent = (payload) => {
          said.push(payload);
          keptAlive.resolve();
        };
        await keptAlive.promise;
        pipe.onSent = (payload) => {
          said.push(payload);
          if (said.length === 4) for (const more of heard.slice(2, 4)) pipe.arrive(more);
        };
        return pairing.digits;
      },
    },
    rest,
  );
  const channel = await pairingUp;
  expect(channel.peerIdentity).toBeUndefined();
  await channel.send(Uint8Array.of(0, 255, 16));
  expect(await channel.receive()).toBe('grüezi');
  await channel.send({ n: 1 });
  pipe.arrive(heard[4] as string);
  const end = await channel.receive().catch((error: RelayError) => error.code);
  expect(end).toBe('peer_done');
  expect(said).toEqual(spokenBy('target'));
});

test('a controller sends these payloads to this target', async () => {
  const pipe = new TestPipe();
  const said: string[] = [];
  pipe.onSent = (payload) => said.push(payload);
  for (const payload of spokenBy('target')) pipe.arrive(payload);
  const shown: string[] = [];
  const channel = await asController(
    pipe,
    {
      otc: pairing.otc,
      receipt: pairing.receipt,
      identity: utf8(pairing.controllerIdentity),
      ephemeral: await ephemeralOf('controller'),
      showDigits: (digits) => shown.push(digits),
    },
    rest,
  );
  expect(shown).toEqual([pairing.digits]);
  expect(channel.peerIdentity).toEqual({ name: 'server' });
  expect(await channel.receive()).toEqual(Uint8Array.of(0, 255, 16));
  expect(await channel.receive()).toEqual({ n: 1 });
  await channel.send('grüezi');
  await channel.done();
  expect(said).toEqual(spokenBy('controller'));
});

test.each(forgeries.map(({ what, ...forgery }) => [what, forgery] as const))(
  'a controller refuses %s',
  async (_what, { payloads, code }) => {
    const pipe = new TestPipe();
    for (const payload of payloads) pipe.arrive(payload);
    const side = { otc: pairing.otc, receipt: pairing.receipt, identity: utf8('') };
    const showDigits = () => {
      throw new Error('digits were shown');
    };
    const refused = asController(pipe, { ...side, showDigits }, rest).catch(
      (error: unknown) => error,
    );
    expect(await refused).toBeInstanceOf(RelayError);
    expect(await refused).toMatchObject({ code });
    expect(pipe.hasEnded).toBe(true);
  },
);

test('the bootstrap', async () => {
  const { token, jti, bootstrap_init: init, bootstrap_ack: ack } = bootstrap;
  const keys = await bootstrapKeys(fromBase64Url(token) as Bytes);
  expect(keys.jti).toBe(jti);
  expect(await sign(keys.announcement, jti, init.targetPubKey)).toBe(init.token);
  expect(await sign(keys.answer, jti, init.targetPubKey, ack.publicKey)).toBe(ack.controllerSig);
});
