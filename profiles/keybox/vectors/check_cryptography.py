#!/usr/bin/env python3
"""Checks v1, v2, closing, interchange and recovery.json with PyCA cryptography and nothing of the product's own code.

For each suite's file: the key set and its hash, the resource key's id, the wrap, the MAC or tag, the signature, the plaintext, the
origin and a key message; and that none of these holds any more when one value is altered. HPKE is computed here from
RFC 9180, step by step against the file's intermediate values, and once more by the library itself if it has HPKE.
For the steps that close and open a room: hashes, signatures, marks, contents, and that each may follow the one before.
For the interchange file: the derived key, the associated data, the plaintext, and that each id commits to its key.
For the recovery key: its checksum, the keys derived from it, the backup's head, and the MAC and the opening of an entry.

    python3 check_cryptography.py [FILE...]

Prints what it checked. Ends with status 0 if all of it holds. Needs Python 3.9 and cryptography 42 or later.
"""

import base64
import hashlib
import hmac
import json
import pathlib
import sys

import cryptography
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

try:
    from cryptography.hazmat.decrepit.ciphers.modes import OFB
except ImportError:
    from cryptography.hazmat.primitives.ciphers.modes import OFB
try:
    from cryptography.hazmat.primitives import hpke
except ImportError:
    hpke = None

V1 = "com.trustner.keybox.v1.rsa2048-oaep-sha256.aes256-ofb-hmac-sha256"
V2 = "com.trustner.keybox.v2.x25519-hpke.aes256-gcm"


class Wrong(Exception):
    """A value of the file is not what it must be."""


def unbase64(text):
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


def base64url(data):
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def fields(*values):
    """The profile's byte string: of each field its length in 8 bytes, big-endian, and its bytes."""
    out = b""
    for value in values:
        if isinstance(value, int):
            value = value.to_bytes(8, "big")
        elif isinstance(value, str):
            value = value.encode()
        out += len(value).to_bytes(8, "big") + value
    return out


def canonical(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def sha256(data):
    return hashlib.sha256(data).digest()


def derive(key, info):
    return HKDF(hashes.SHA256(), 32, None, info.encode()).derive(key)


def expect(name, found, expected):
    if found != expected:
        raise Wrong(f"{name}: expected {expected!r}, computed {found!r}")


def verify(name, public, signature, message):
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        raise Wrong(f"{name}: the signature does not verify") from None


def check_key_set(v):
    device_keys = json.loads(v["recipient_device_keys"])
    owner = (device_keys["user_id"], device_keys["device_id"])
    expect("owner of the key set", owner, (v["recipient"], v["recipient_keybox"]))
    if v["suite"] not in device_keys["algorithms"]:
        raise Wrong("the key set does not name the suite")
    _, rsa, x25519, digest = read_key_set(device_keys)
    expect("hash of the key set", digest.hex(), v["recipient_key_set_hash_hex"])
    return rsa, x25519


def read_key_set(device_keys):
    """Ed25519 key, RSA key, text of the X25519 key, and the hash of a key set, once it is found to be well formed and signed."""
    user, keybox = device_keys["user_id"], device_keys["device_id"]
    keys = device_keys["keys"]
    ed25519 = unbase64(keys[f"ed25519:{keybox}"])
    rsa = unbase64(keys[f"com.trustner.keybox.rsa2048:{keybox}"])
    public = serialization.load_der_public_key(rsa)
    numbers = public.public_numbers()
    expect("RSA exponent and size", (numbers.e, numbers.n.bit_length(), numbers.n & 1), (65537, 2048, 1))
    again = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    expect("RSA key, encoded again", again, rsa)
    x25519 = keys.get(f"com.trustner.keybox.x25519:{keybox}", "")
    signed = {k: value for k, value in device_keys.items() if k not in ("signatures", "unsigned")}
    verify("key set", ed25519, unbase64(device_keys["signatures"][user][f"ed25519:{keybox}"]), canonical(signed))
    return ed25519, rsa, x25519, sha256(fields("com.trustner.keybox.key_set", user, keybox, ed25519, rsa, x25519))


def check_wrap_v1(v, wrap, context, public):
    private = serialization.load_der_private_key(unbase64(v["recipient_rsa_private_pkcs8"]), None)
    own = private.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    expect("public key of the recipient", own, public[0])
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), label=context)
    try:
        return private.decrypt(wrap, oaep)
    except ValueError:
        raise Wrong("the wrap does not open") from None


def labeled_extract(suite_id, salt, label, ikm):
    return hmac.new(salt or bytes(32), b"HPKE-v1" + suite_id + label + ikm, "sha256").digest()


def labeled_expand(suite_id, prk, label, info, length):
    labeled = length.to_bytes(2, "big") + b"HPKE-v1" + suite_id + label + info
    return HKDFExpand(hashes.SHA256(), length, labeled).derive(prk)


def check_wrap_v2(v, wrap, context, public):
    private = X25519PrivateKey.from_private_bytes(bytes.fromhex(v["recipient_x25519_private_hex"]))
    expect("public key of the recipient", private.public_key().public_bytes_raw(), unbase64(public[1]))
    return open_base(v, private, context, wrap)


def open_base(v, private, context, wrap):
    """RFC 9180, OpenBase: section 4.1 (decapsulation), 5.1 (key schedule), 5.2 (decryption). Compares what `v` has of the steps."""
    own = private.public_key().public_bytes_raw()
    enc, ciphertext = wrap[:32], wrap[32:]

    def step(name, found):
        if f"hpke_{name}_hex" in v:
            expect(name, found.hex(), v[f"hpke_{name}_hex"])

    step("enc", enc)
    dh = private.exchange(X25519PublicKey.from_public_bytes(enc))
    step("dh", dh)
    kem = b"KEM" + (0x0020).to_bytes(2, "big")
    eae_prk = labeled_extract(kem, b"", b"eae_prk", dh)
    shared = labeled_expand(kem, eae_prk, b"shared_secret", enc + own, 32)
    step("shared_secret", shared)
    suite = b"HPKE" + b"".join(n.to_bytes(2, "big") for n in (0x0020, 0x0001, 0x0002))
    schedule = b"\0" + labeled_extract(suite, b"", b"psk_id_hash", b"")
    schedule += labeled_extract(suite, b"", b"info_hash", context)
    step("key_schedule_context", schedule)
    secret = labeled_extract(suite, shared, b"secret", b"")
    key = labeled_expand(suite, secret, b"key", schedule, 32)
    nonce = labeled_expand(suite, secret, b"base_nonce", schedule, 12)
    step("key", key)
    step("base_nonce", nonce)
    try:
        opened = AESGCM(key).decrypt(nonce, ciphertext, b"")
    except InvalidTag:
        raise Wrong("the wrap does not open") from None
    if hpke is not None:
        library = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
        expect("the library's own HPKE", library.decrypt(wrap, private, context), opened)
    return opened


def open_v1(v, key, context, iv, ciphertext, mac):
    mac_key = derive(key, "com.trustner.keybox.v1.mac_key")
    expect("MAC key", mac_key.hex(), v["mac_key_hex"])
    covered = fields("com.trustner.keybox.v1.mac", context, iv, ciphertext)
    expect("MAC", hmac.new(mac_key, covered, "sha256").hexdigest(), mac.hex())
    decryptor = Cipher(algorithms.AES(key), OFB(iv)).decryptor()
    return decryptor.update(ciphertext) + decryptor.finalize()


def open_v2(v, key, context, iv, ciphertext, mac):
    content_key = derive(key, "com.trustner.keybox.v2.content_key")
    expect("content key", content_key.hex(), v["content_key_hex"])
    expect("size of nonce and tag", (len(iv), len(mac)), (12, 16))
    try:
        return AESGCM(content_key).decrypt(iv, ciphertext + mac, context)
    except InvalidTag:
        raise Wrong("the content does not open") from None


SUITES = {V1: (check_wrap_v1, open_v1), V2: (check_wrap_v2, open_v2)}


def check_entry(entry):
    key = bytes.fromhex(entry["key"])
    digest = sha256(fields("com.trustner.keybox.resource_key_id", entry["room_id"], key))
    expect("id of an entry", base64url(digest[:16]), entry["key_id"])


def check_interchange(v, say=lambda text: None):
    file = json.loads(v["file"])
    expect("head", (file["format"], file["version"]), ("com.trustner.keybox.interchange", 1))
    salt, nonce, ciphertext = (unbase64(file[name]) for name in ("salt", "nonce", "ciphertext"))
    expect("size of salt and nonce", (len(salt), len(nonce)), (16, 12))
    key = Scrypt(salt=salt, length=32, n=16384, r=8, p=5).derive(v["passphrase"].encode())
    expect("key", key.hex(), v["key"])
    associated = fields(file["format"], file["version"], salt, nonce)
    expect("associated data", associated.hex(), v["associated"])
    try:
        plaintext = AESGCM(key).decrypt(nonce, ciphertext, associated).decode()
    except InvalidTag:
        raise Wrong("the file does not open") from None
    expect("plaintext", plaintext, v["plaintext"])
    for entry in json.loads(plaintext)["keys"]:
        check_entry(entry)
    say("interchange file: key, associated data, plaintext, ids")


def check_recovery(v, say=lambda text: None):
    both = bytes.fromhex(v["recovery_key"].replace(" ", ""))
    secret, checksum = both[:32], both[32:]
    expect("checksum", sha256(fields("com.trustner.keybox.recovery.check", secret))[:2], checksum)
    private = derive(secret, "com.trustner.keybox.recovery.x25519")
    expect("private key", private.hex(), v["x25519_private_hex"])
    private = X25519PrivateKey.from_private_bytes(private)
    public = private.public_key().public_bytes_raw()
    expect("public key", public, unbase64(v["x25519_public"]))
    mac_key = derive(secret, "com.trustner.keybox.recovery.mac_key")
    expect("MAC key", mac_key.hex(), v["mac_key_hex"])
    say("recovery key: checksum, derived keys")

    user, room, key_id = v["user_id"], v["room_id"], v["key_id"]
    head = json.loads(v["auth_data"])
    expect("public key of the head", unbase64(head["public_key"]), public)
    covered = fields("com.trustner.keybox.recovery.head", user, public)
    expect("MAC of the head", hmac.new(mac_key, covered, "sha256").digest(), unbase64(head["mac"]))
    info = fields("com.trustner.keybox.recovery.entry", user, room, key_id)
    expect("info", info.hex(), v["info_hex"])
    entry = json.loads(v["session_data"])
    sealed = unbase64(entry["sealed"])
    covered = fields("com.trustner.keybox.recovery.mac", user, room, key_id, sealed)
    expect("MAC of the entry", hmac.new(mac_key, covered, "sha256").digest(), unbase64(entry["mac"]))
    plaintext = open_base(v, private, info, sealed).decode()
    expect("plaintext", plaintext, v["plaintext"])
    opened = json.loads(plaintext)
    expect("place of the entry", (opened["room_id"], opened["key_id"]), (room, key_id))
    check_entry(opened)
    say("backup: head, MAC, entry, its place and id")


def check_closing(v, say=lambda text: None):
    room, boxes = v["room_id"], {}
    for owner in ("alice", "bob", "phone"):
        device_keys = json.loads(v[f"{owner}_device_keys"])
        ed25519, _, _, digest = read_key_set(device_keys)
        expect("name of a KeyBox", base64url(digest), v[f"{owner}_keybox"])
        private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(v[f"{owner}_ed25519_private_hex"]))
        expect("signing key", private.public_key().public_bytes_raw(), ed25519)
        boxes[device_keys["user_id"], device_keys["device_id"]] = (private, base64url(digest))
    say("key sets, and how steps name them")

    taken, closed, admitted, moderators, limit = [], False, set(), [], None
    for number in range(1, 5):
        step = json.loads(v[f"step_{number}"])
        expect("form of a step", canonical(step).decode(), v[f"step_{number}"])
        private, name = boxes[step["user_id"], step["keybox_id"]]
        before = v[f"step_{number - 1}_hash"] if taken else ""
        expect("place of a step", (step["generation"], step["prev"]), (number, before))
        covered = {member: value for member, value in step.items() if member != "signature"}
        covered = fields("com.trustner.keybox.closing_step", room, canonical(covered))
        expect("what is hashed", covered.hex(), v[f"step_{number}_hash_input_hex"])
        digest = base64url(sha256(covered))
        expect("hash of a step", digest, v[f"step_{number}_hash"])
        signed = fields("com.trustner.keybox.closing", room, number, digest, step["user_id"], step["keybox_id"])
        expect("what is signed", signed.hex(), v[f"step_{number}_signature_input_hex"])
        expect("signature of a step", private.sign(signed), unbase64(step["signature"]))
        mark = {member: step[member] for member in ("generation", "user_id", "keybox_id", "signature")}
        expect("mark", canonical({**mark, "hash": digest}).decode(), v[f"step_{number}_mark"])

        if closed and (name not in admitted or step["user_id"] not in moderators):
            raise Wrong(f"step {number} is not by a moderator's KeyBox of the closed room")
        action, named = step["action"], step.get("keyboxes", [])
        expect("order of the KeyBoxes", named, sorted(set(named)))
        if action == "approve":
            expect("approvals are for closed rooms", closed, True)
            admitted |= set(named)
        else:
            closed, admitted = action == "close", set(named)
            moderators, limit = step.get("moderators", []), step.get("limit")
        if action == "close":
            # What comes before the closing before is left out.
            last = [index for index, one in enumerate(taken) if one["action"] == "close"]
            taken = taken[last[-1] + 1:] if last else []
        taken = taken + [step]
        content = {"closed": closed, "by": step["user_id"], "steps": taken}
        if limit is not None:
            content["limit"] = limit
        expect("content", canonical(content).decode(), v[f"step_{number}_content"])
    say("four steps: form, hash, signature, mark, content, and that each may follow the one before")


def check(v, say=lambda text: None):
    """Checks one file's values; raises Wrong at the first that does not hold."""
    if "passphrase" in v:
        return check_interchange(v, say)
    if "step_1" in v:
        return check_closing(v, say)
    if "recovery_key" in v:
        return check_recovery(v, say)
    if v["suite"] not in SUITES:
        raise Wrong(f"unknown suite {v['suite']}")
    check_wrap, open_content = SUITES[v["suite"]]
    suite, room, key_id = v["suite"], v["room_id"], v["key_id"]
    sender, sender_keybox = v["sender"], v["sender_keybox"]
    recipient, recipient_keybox = v["recipient"], v["recipient_keybox"]
    public = check_key_set(v)
    say("key set: keys, signature, hash")

    key = bytes.fromhex(v["resource_key_hex"])
    digest = sha256(fields("com.trustner.keybox.resource_key_id", room, key))
    expect("resource key id", base64url(digest[:16]), key_id)
    say("resource key id")
    context = fields(
        "com.trustner.keybox.wrap", suite, room, key_id, sender, sender_keybox, recipient, recipient_keybox
    )
    expect("wrap context", context.hex(), v["wrap_context_hex"])
    expect("unwrapped key", check_wrap(v, unbase64(v["wrap"]), context, public), key)
    say("wrap: context, every step, resource key")

    counter = int(v["counter"])
    context = fields("com.trustner.keybox.message", suite, room, key_id, sender, sender_keybox, counter)
    expect("message context", context.hex(), v["message_context_hex"])
    envelope = json.loads(v["envelope"])
    iv, ciphertext, mac = (unbase64(envelope[name]) for name in ("iv", "ciphertext", "mac"))
    expect("parts of the envelope", (iv.hex(), ciphertext, mac.hex()),
           (v["iv_hex"], unbase64(v["ciphertext"]), v["mac_hex"]))
    expect("head of the envelope",
           [envelope[name] for name in ("algorithm", "key_id", "sender_keybox", "counter", "signature")],
           [suite, key_id, sender_keybox, counter, v["signature"]])
    digest = sha256(fields("com.trustner.keybox.envelope", context, iv, ciphertext, mac))
    expect("envelope hash", digest.hex(), v["envelope_hash_hex"])
    ed25519 = unbase64(v["sender_ed25519_public"])
    verify("envelope", ed25519, unbase64(v["signature"]), digest)
    plaintext = open_content(v, key, context, iv, ciphertext, mac).decode()
    expect("plaintext", plaintext, v["plaintext"])
    expect("room of the plaintext", json.loads(plaintext)["room_id"], room)
    say("envelope: context, keys, authentication, signature, plaintext")

    audience = fields("com.trustner.keybox.audience", sender, sender_keybox, recipient, recipient_keybox)
    expect("audience", base64url(sha256(audience)), v["audience_hash"])
    origin = json.loads(v["origin"])
    expect("audience of the origin", origin["audience"], v["audience_hash"])
    verify("origin", ed25519, unbase64(origin["signature"]), fields(
        "com.trustner.keybox.origin", suite, room, key_id, origin["user_id"], origin["keybox_id"],
        origin["created_at"], origin["audience"]))
    request = json.loads(v["key_request"])
    signature = unbase64(request.pop("signature"))
    verify("key message", ed25519, signature, fields(
        "com.trustner.keybox.key_message", "com.trustner.keybox.resource_key_request", sender,
        recipient, recipient_keybox, canonical(request)))
    say("key messages: audience, origin, signed request")


def check_alterations(v):
    """Every value of the file matters: with any one of them altered, something does not hold."""
    unused = {"sender_ed25519_private_hex"}
    names = sorted(set(v) - unused)
    for name in names:
        value = v[name]
        middle = len(value) // 2
        other = "1" if value[middle] != "1" else "2"
        try:
            check({**v, name: value[:middle] + other + value[middle + 1:]})
        except Exception:  # Whatever way a check fails is fine here.
            continue
        raise Wrong(f"{name} can be altered without notice")
    return len(names)


def main(paths):
    here = pathlib.Path(__file__).parent
    for path in paths or sorted(here.glob("*.json")):
        vectors = json.loads(pathlib.Path(path).read_text())
        print(f"{path}: {vectors.get('suite', 'no suite')}")
        check(vectors, lambda text: print(f"  ok   {text}"))
        checked = check_alterations(vectors)
        print(f"  ok   refused with each of {checked} values altered")
    own = "" if hpke is None else ", its own HPKE too"
    print(f"all of it holds (PyCA cryptography {cryptography.__version__}{own})")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Wrong as error:
        sys.exit(f"FAIL {error}")
