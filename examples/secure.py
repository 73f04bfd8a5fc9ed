#!/usr/bin/env python3
"""Pairs two processes so that the relay between them can neither read nor change what they say. Written from
docs/secure.md; needs the `cryptography` package (Debian: python3-cryptography), and pair.py beside it.

    python3 secure.py target ws://127.0.0.1:3001/ws                            shows a code, asks for digits
    python3 secure.py controller ws://127.0.0.1:3001/ws 482916-730514          on the other device: shows digits
    python3 secure.py watch ws://127.0.0.1:3001/ws TOKEN PUBLIC_KEY            a bootstrap, the controller's side
    python3 secure.py boot ws://127.0.0.1:3001/ws TOKEN PUBLIC_KEY             and the machine's
    python3 secure.py check docs/secure-vectors.json                           against the test vectors
"""

import base64
import hashlib
import hmac
import json
import re
import secrets
import struct
import sys
import threading

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pair import Relay, RelayError, wait_for_peer

PROTOCOL = "amesh-secure-1"
MAGIC = b"ams1"
COMMIT, ANSWER, REVEAL = 1, 2, 3
REFUSE, READY, VERDICT, ACCEPT, KEEP_ALIVE, END, BYTES, TEXT, JSON = 0, 1, 2, 3, 4, 5, 16, 17, 18
REFUSALS = ["cancelled", "digits_malformed", "digits_mismatch", "code_mismatch"]


def framed(*parts):
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def digest(label, *parts):
    return hashlib.sha256(framed(f"{PROTOCOL} {label}".encode(), *parts)).digest()


def hkdf(secret, salt, label, size=32):
    return HKDF(SHA256(), size, salt, f"{PROTOCOL} {label}".encode()).derive(secret)


def public_bytes(private_key):
    return private_key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def to_base64(data):
    return base64.b64encode(data).decode()


def from_base64(text):
    """Standard base64, padded, and nothing else; None otherwise."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return None


class Keys:
    """What the transcript comes to, for one role: the digits, and a key for each direction."""

    def __init__(self, role, private_key, otc, commitment, controller_key, target_key, nonce):
        if not hmac.compare_digest(commitment, digest("commitment", otc.encode(), target_key, nonce)):
            raise RelayError("not_authentic")
        transcript = digest("transcript", otc.encode(), commitment, controller_key, target_key, nonce)
        peer = controller_key if role == "target" else target_key
        try:
            point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), peer)
        except ValueError:  # not on the curve
            raise RelayError("not_authentic") from None
        secret = private_key.exchange(ec.ECDH(), point)
        self.to_controller = hkdf(secret, transcript, "target to controller")
        self.to_target = hkdf(secret, transcript, "controller to target")
        self.digits = f"{int.from_bytes(digest('digits', transcript)[:8], 'big') % 1_000_000:06}"
        pair = (self.to_controller, self.to_target)
        self.sending, self.receiving = pair if role == "target" else pair[::-1]


class Channel:
    """Sealed records over a relay, counted in each direction."""

    def __init__(self, relay, keys):
        self.relay, self.keys = relay, keys
        self.sent = self.received = 0
        self.lock = threading.Lock()  # keep-alives are sent from a thread of their own

    def send(self, kind, body=b""):
        with self.lock:
            nonce = bytes(4) + struct.pack(">Q", self.sent)
            self.sent += 1
            say(self.relay, AESGCM(self.keys.sending).encrypt(nonce, bytes([kind]) + body, None))

    def receive(self):
        """The next record's kind and body, keep-alives aside."""
        while True:
            sealed = from_base64(self.relay.expect("data")["payload"])
            nonce = bytes(4) + struct.pack(">Q", self.received)
            self.received += 1
            try:
                record = AESGCM(self.keys.receiving).decrypt(nonce, sealed or b"", None)
            except (InvalidTag, ValueError):
                raise RelayError("not_authentic") from None
            if not record:
                raise RelayError("unexpected_frame")
            kind, body = record[0], record[1:]
            if kind == REFUSE:
                reason = body[0] if body else 0
                raise RelayError(REFUSALS[reason] if reason < len(REFUSALS) else "cancelled")
            if kind != KEEP_ALIVE:
                return kind, body

    def expect(self, wanted):
        kind, body = self.receive()
        if kind != wanted:
            raise RelayError("unexpected_frame")
        return body

    def refuse(self, reason):
        self.send(REFUSE, bytes([REFUSALS.index(reason)]))
        raise RelayError(reason)


def say(relay, data):
    relay.send(type="data", payload=to_base64(data))


def hear(relay, number, size):
    """One of the three messages in the clear, without its head."""
    data = from_base64(relay.expect("data")["payload"])
    head = MAGIC + bytes([number])
    if data is None or len(data) != len(head) + size or not data.startswith(head):
        raise RelayError("not_secure")
    return data[len(head) :]


def as_target(relay, otc, receipt, identity, ask, private_key=None, nonce=None):
    private_key = private_key or ec.generate_private_key(ec.SECP256R1())
    nonce = nonce or secrets.token_bytes(32)
    target_key = public_bytes(private_key)
    commitment = digest("commitment", otc.encode(), target_key, nonce)
    say(relay, MAGIC + bytes([COMMIT]) + commitment)
    controller_key = hear(relay, ANSWER, 65)
    say(relay, MAGIC + bytes([REVEAL]) + target_key + nonce)
    keys = Keys("target", private_key, otc, commitment, controller_key, target_key, nonce)
    channel = Channel(relay, keys)
    channel.expect(READY)
    typed = re.sub(r"[\s-]", "", while_asking(channel, ask))
    if not re.fullmatch(r"[0-9]{6}", typed):
        channel.refuse("digits_malformed")
    if not hmac.compare_digest(typed, keys.digits):
        channel.refuse("digits_mismatch")
    channel.send(VERDICT, receipt.encode() + identity)
    try:
        return channel, channel.expect(ACCEPT)
    except (RelayError, OSError) as error:
        raise error if str(error) in REFUSALS else RelayError("unconfirmed") from error


def while_asking(channel, ask):
    """Asks the person, and tells the relay every 10 s that somebody is still here."""
    answered = threading.Event()

    def keep_alive():
        try:
            while not answered.wait(10):
                channel.send(KEEP_ALIVE)
        except OSError:
            pass  # the connection is gone, which the answer will meet

    threading.Thread(target=keep_alive, daemon=True).start()
    try:
        return ask(channel)
    except (KeyboardInterrupt, EOFError):
        channel.refuse("cancelled")
    finally:
        answered.set()


def as_controller(relay, otc, receipt, identity, show, private_key=None):
    commitment = hear(relay, COMMIT, 32)
    private_key = private_key or ec.generate_private_key(ec.SECP256R1())
    controller_key = public_bytes(private_key)
    say(relay, MAGIC + bytes([ANSWER]) + controller_key)
    revealed = hear(relay, REVEAL, 65 + 32)
    keys = Keys("controller", private_key, otc, commitment, controller_key, revealed[:65], revealed[65:])
    channel = Channel(relay, keys)
    show(keys.digits)
    channel.send(READY)
    verdict = channel.expect(VERDICT)
    if not hmac.compare_digest(verdict[:6], receipt.encode()):
        channel.refuse("code_mismatch")
    channel.send(ACCEPT, identity)
    return channel, verdict[6:]


def finish(channel):
    """Says that this side is finished, and leaves when the other has heard it."""
    channel.send(END)
    channel.relay.send(type="done")
    channel.relay.close()


def target(url):
    receipt = f"{secrets.randbelow(1_000_000):06}"
    relay, otc = wait_for_peer(url, lambda otc: print(f"code {otc}-{receipt}", flush=True))

    def ask(_channel):
        print("digits on the other device?", flush=True)
        return input()

    channel, peer = as_target(relay, otc, receipt, json.dumps({"name": "python"}).encode(), ask)
    print("paired with", peer.decode() or "somebody without a name", flush=True)
    channel.send(TEXT, "hello from the target".encode())
    print("received", channel.expect(TEXT).decode())
    finish(channel)


def controller(url, code):
    digits = re.sub(r"[\s-]", "", code)
    if not re.fullmatch(r"[0-9]{12}", digits):
        raise RelayError("invalid_code")
    relay = Relay(url)
    relay.send(type="connect", otc=digits[:6])
    relay.expect("peer_found")
    identity = json.dumps({"name": "python"}).encode()
    show = lambda sas: print("digits", sas, flush=True)  # noqa: E731
    channel, peer = as_controller(relay, digits[:6], digits[6:], identity, show)
    print("paired with", peer.decode() or "somebody without a name", flush=True)
    print("received", channel.expect(TEXT).decode())
    channel.send(TEXT, "hello from the controller".encode())
    channel.expect(END)
    relay.close()


class Bootstrap:
    """What both sides derive from the token."""

    def __init__(self, token):
        secret = base64.urlsafe_b64decode(token + "=")
        self.jti = "bt_" + hkdf(secret, None, "bootstrap id", 16).hex()
        self.announcement_key = hkdf(secret, None, "bootstrap announcement")
        self.answer_key = hkdf(secret, None, "bootstrap answer")

    def announcement(self, target_key):
        return self.mac(self.announcement_key, self.jti, target_key)

    def answer(self, target_key, controller_key):
        return self.mac(self.answer_key, self.jti, target_key, controller_key)

    @staticmethod
    def mac(key, *texts):
        return to_base64(hmac.digest(key, framed(*(text.encode() for text in texts)), "sha256"))


def watch(url, token, public_key):
    keys, relay = Bootstrap(token), Relay(url)
    relay.send(type="bootstrap_watch", jti=keys.jti)
    relay.expect("bootstrap_watching")
    print("watching", flush=True)
    machine = relay.expect("bootstrap_init")
    if not hmac.compare_digest(machine["token"].encode(), keys.announcement(machine["targetPubKey"]).encode()):
        relay.send(type="bootstrap_reject", jti=keys.jti, error="not_authentic")
        raise RelayError("not_authentic")
    answer = keys.answer(machine["targetPubKey"], public_key)
    relay.send(type="bootstrap_ack", jti=keys.jti, publicKey=public_key, controllerSig=answer)
    print("accepted", machine["targetPubKey"])
    relay.close()


def boot(url, token, public_key):
    keys, relay = Bootstrap(token), Relay(url)
    proof = keys.announcement(public_key)
    relay.send(type="bootstrap_init", jti=keys.jti, token=proof, targetPubKey=public_key)
    answer = relay.expect("bootstrap_ack")
    expected = keys.answer(public_key, answer["controllerPubKey"])
    if not hmac.compare_digest(answer["controllerSig"].encode(), expected.encode()):
        raise RelayError("not_authentic")
    print("accepted by", answer["controllerPubKey"])
    relay.close()


class Script:
    """In the place of a relay: says what the vectors say, and keeps what it is told."""

    def __init__(self, payloads):
        self.payloads, self.told = list(payloads), []

    def expect(self, _kind):
        if not self.payloads:
            raise RelayError("peer_disconnected")
        return {"payload": self.payloads.pop(0)}

    def send(self, type, payload):
        self.told.append(payload)


def check(path):
    with open(path, encoding="utf-8") as file:
        vectors = json.load(file)
    v = vectors["pairing"]
    spoken = {
        role: [it["payload"] for it in v["clear"] + v["sealed"] if it["from"] == role] for role in ("target", "controller")
    }
    private = {
        role: ec.derive_private_key(int(v[f"{role}Private"], 16), ec.SECP256R1()) for role in ("target", "controller")
    }

    script = Script(spoken["target"])
    channel, peer = as_controller(
        script, v["otc"], v["receipt"], v["controllerIdentity"].encode(), lambda digits: expect(digits, v["digits"]), private["controller"]
    )
    expect(peer.decode(), v["targetIdentity"])
    expect(channel.expect(BYTES), b"\x00\xff\x10")
    expect(json.loads(channel.expect(JSON)), {"n": 1})
    channel.send(TEXT, "grüezi".encode())
    channel.send(END)
    expect(script.told, spoken["controller"])

    script = Script(spoken["controller"])

    def ask(channel):
        channel.send(KEEP_ALIVE)  # the vectors have one here
        return v["digits"]

    channel, _ = as_target(
        script, v["otc"], v["receipt"], v["targetIdentity"].encode(), ask, private["target"], bytes.fromhex(v["nonce"])
    )
    channel.send(BYTES, b"\x00\xff\x10")
    channel.send(JSON, b'{"n":1}')
    expect(script.told, spoken["target"])

    for forgery in vectors["forgeries"]:
        try:
            as_controller(Script(forgery["payloads"]), v["otc"], v["receipt"], b"", lambda digits: None)
        except RelayError as error:
            expect(str(error), forgery["code"])
        else:
            raise SystemExit(f"{forgery['what']} was taken")

    b = vectors["bootstrap"]
    keys, init, ack = Bootstrap(b["token"]), b["bootstrap_init"], b["bootstrap_ack"]
    expect(keys.jti, b["jti"])
    expect(keys.announcement(init["targetPubKey"]), init["token"])
    expect(keys.answer(init["targetPubKey"], ack["publicKey"]), ack["controllerSig"])
    print("all vectors hold")


def expect(value, wanted):
    if value != wanted:
        raise SystemExit(f"expected {wanted!r}, got {value!r}")


if __name__ == "__main__":
    commands = {"target": (target, 1), "controller": (controller, 2), "watch": (watch, 3), "boot": (boot, 3), "check": (check, 1)}
    command, count = commands.get(sys.argv[1] if len(sys.argv) > 1 else "", (None, 0))
    if command is None or len(sys.argv) != 2 + count:
        sys.exit(__doc__)
    try:
        command(*sys.argv[2:])
    except (RelayError, OSError) as error:
        sys.exit(f"secure.py: {error}")
