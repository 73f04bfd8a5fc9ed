/**
 * Writes docs/secure-vectors.json: a pairing, and a bootstrap, with every input fixed. Written from docs/secure.md with
 * another library than the client uses, so that the two check each other. A test compares the file. Run `bun fmt`
 * after it.
 */
import { gcm } from '@noble/ciphers/aes.js';
import { p256 } from '@noble/curves/nist.js';
import { hkdf } from '@noble/hashes/hkdf.js';
import { hmac } from '@noble/hashes/hmac.js';
import { sha256 } from '@noble/hashes/sha2.js';
import { join } from 'node:path';

const utf8 = (text: string): Uint8Array<ArrayBuffer> => new TextEncoder().encode(text);
const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString('base64');
const fixed = (name: string): Uint8Array => sha256(utf8(`test vector: ${name}`));

function framed(...parts: Uint8Array[]): Uint8Array {
  return Buffer.concat(
    parts.flatMap((part) => {
      const length = Buffer.alloc(4);
      length.writeUInt32BE(part.length);
      return [length, part];
    }),
  );
}

const label = (name: string): Uint8Array => utf8(`amesh-secure-1 ${name}`);

function pairing() {
  const [otc, receipt] = ['048291', '730514'];
  const identities = { target: '{"name":"server"}', controller: '' };
  const targetPrivate = fixed('target private key');
  const controllerPrivate = fixed('controller private key');
  const nonce = fixed('nonce');
  const T = p256.getPublicKey(targetPrivate, false);
  const C = p256.getPublicKey(controllerPrivate, false);
  const commitment = sha256(framed(label('commitment'), utf8(otc), T, nonce));
  const transcript = sha256(framed(label('transcript'), utf8(otc), commitment, C, T, nonce));
  const shared = p256.getSharedSecret(targetPrivate, C).slice(1);
  const keyOf = (name: string) => hkdf(sha256, shared, transcript, label(name), 32);
  const keys = {
    target: keyOf('target to controller'),
    controller: keyOf('controller to target'),
  };
  const number = Buffer.from(sha256(framed(label('digits'), transcript))).readBigUInt64BE();
  const digits = String(number % 1_000_000n).padStart(6, '0');

  const clear = (from: string, kind: number, ...parts: Uint8Array[]) => {
    const bytes = Buffer.concat([utf8('ams1'), Uint8Array.of(kind), ...parts]);
    return { from, bytes: hex(bytes), payload: base64(bytes) };
  };
  const counts = { target: 0, controller: 0 };
  const sealed = (
    from: 'target' | 'controller',
    kind: number,
    body: Uint8Array = new Uint8Array(),
  ) => {
    const iv = Buffer.alloc(12);
    iv.writeBigUInt64BE(BigInt(counts[from]++), 4);
    const record = Buffer.concat([Uint8Array.of(kind), body]);
    const payload = base64(gcm(keys[from], iv).encrypt(record));
    return { from, iv: hex(iv), record: hex(record), payload };
  };
  return {
    otc,
    receipt,
    code: `${otc}-${receipt}`,
    targetPrivate: hex(targetPrivate),
    targetKey: hex(T),
    controllerPrivate: hex(controllerPrivate),
    controllerKey: hex(C),
    nonce: hex(nonce),
    targetIdentity: identities.target,
    controllerIdentity: identities.controller,
    commitmentInput: hex(framed(label('commitment'), utf8(otc), T, nonce)),
    commitment: hex(commitment),
    transcript: hex(transcript),
    sharedSecret: hex(shared),
    targetToController: hex(keys.target),
    controllerToTarget: hex(keys.controller),
    digits,
    clear: [
      clear('target', 1, commitment),
      clear('controller', 2, C),
      clear('target', 3, T, nonce),
    ],
    sealed: [
      sealed('controller', 1),
      sealed('target', 4),
      sealed('target', 2, Buffer.concat([utf8(receipt), utf8(identities.target)])),
      sealed('controller', 3, utf8(identities.controller)),
      sealed('target', 16, Uint8Array.of(0, 255, 16)),
      sealed('controller', 17, utf8('grüezi')),
      sealed('target', 18, utf8('{"n":1}')),
      sealed('controller', 5),
    ],
    refusals: ['cancelled', 'digits_malformed', 'digits_mismatch', 'code_mismatch'].map(
      (reason, byte) => ({ reason, record: hex(Uint8Array.of(0, byte)) }),
    ),
  };
}

/** What the controller must not accept, in the place of the target's two messages. */
function forgeries(honest: ReturnType<typeof pairing>) {
  const [commit = { bytes: '' }, , reveal = { bytes: '' }] = honest.clear;
  const flip = (bytes: string, at: number): string => {
    const changed = Buffer.from(bytes, 'hex');
    changed[at] = (changed[at] as number) ^ 1;
    return base64(changed);
  };
  const offCurve = Buffer.from(honest.targetKey, 'hex');
  offCurve[64] = (offCurve[64] as number) ^ 1;
  const nonce = Buffer.from(honest.nonce, 'hex');
  const committed = sha256(framed(label('commitment'), utf8(honest.otc), offCurve, nonce));
  const [plain, otherRole] = [base64(utf8('hello')), honest.clear[1]?.payload as string];
  const whole = (bytes: string): string => base64(Buffer.from(bytes, 'hex'));
  const begin = (kind: number): Uint8Array => Buffer.concat([utf8('ams1'), Uint8Array.of(kind)]);
  return [
    { what: 'another protocol', payloads: [plain], code: 'not_secure' },
    { what: 'not base64', payloads: ['hello!'], code: 'not_secure' },
    { what: 'another magic', payloads: [flip(commit.bytes, 3)], code: 'not_secure' },
    { what: 'a byte too many', payloads: [whole(`${commit.bytes}00`)], code: 'not_secure' },
    { what: 'an answer instead of a commitment', payloads: [otherRole], code: 'not_secure' },
    {
      what: 'another commitment',
      payloads: [flip(commit.bytes, 36), whole(reveal.bytes)],
      code: 'not_authentic',
    },
    {
      what: 'another nonce',
      payloads: [whole(commit.bytes), flip(reveal.bytes, 101)],
      code: 'not_authentic',
    },
    {
      what: 'a point off the curve, rightly committed to',
      payloads: [
        base64(Buffer.concat([begin(1), committed])),
        base64(Buffer.concat([begin(3), offCurve, nonce])),
      ],
      code: 'not_authentic',
    },
  ];
}

function bootstrap() {
  const secret = fixed('bootstrap token');
  const keyOf = (name: string, size: number) =>
    hkdf(sha256, secret, new Uint8Array(), label(`bootstrap ${name}`), size);
  const jti = `bt_${hex(keyOf('id', 16))}`;
  const [targetPubKey, controllerPubKey] = ['the machine’s key', 'the controller’s key'];
  const mac = (name: string, ...texts: string[]): string =>
    base64(hmac(sha256, keyOf(name, 32), framed(...texts.map(utf8))));
  return {
    token: secret.toBase64({ alphabet: 'base64url', omitPadding: true }),
    jti,
    announcementKey: hex(keyOf('announcement', 32)),
    answerKey: hex(keyOf('answer', 32)),
    bootstrap_init: {
      jti,
      token: mac('announcement', jti, targetPubKey),
      targetPubKey,
    },
    bootstrap_ack: {
      jti,
      publicKey: controllerPubKey,
      controllerSig: mac('answer', jti, targetPubKey, controllerPubKey),
    },
  };
}

export function vectors() {
  const honest = pairing();
  return { pairing: honest, forgeries: forgeries(honest), bootstrap: bootstrap() };
}

if (import.meta.main) {
  const file = join(import.meta.dir, '../docs/secure-vectors.json');
  await Bun.write(file, `${JSON.stringify(vectors(), undefined, 2)}\n`);
}
