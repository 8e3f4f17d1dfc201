#!/usr/bin/env bash
# Checks vectors/v1.json with the openssl command line (3.0 or later) and nothing of the product's own code:
# unwraps the resource key, checks its id, the MAC and the signature of the message, and decrypts it from the
# 64 hexadecimal characters of the key and the IV alone. Ends with status 0 if all of it holds.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
vectors=${1:-$here/v1.json}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The value of a member of the flat JSON object; \" and \\ are the only escapes in it.
value() { sed -n 's/^ *"'"$1"'": "\(.*\)",\{0,1\}$/\1/p' "$vectors" | sed 's/\\\(["\\]\)/\1/g'; }
unhex() { printf "$(sed 's/../\\x&/g' <<<"$1")"; }
tohex() { od -An -v -tx1 | tr -d ' \n'; }
# Unpadded base64 to bytes.
unbase64() {
  local text=$1
  while ((${#text} % 4)); do text+='='; done
  openssl base64 -d -A <<<"$text"
}
# A field of the profile: 8 bytes of length, big-endian, then the bytes of the file.
field_file() { unhex "$(printf '%016x' "$(wc -c <"$1")")"; cat "$1"; }
field() { printf '%s' "$1" >"$work/field"; field_file "$work/field"; }
field_hex() { unhex "$1" >"$work/field"; field_file "$work/field"; }
sha256_hex() { openssl dgst -sha256 -binary | tohex; }
expect() {
  if [[ $2 != "$3" ]]; then
    printf 'FAIL %s\n  expected %s\n  computed %s\n' "$1" "$3" "$2" >&2
    exit 1
  fi
  printf 'ok   %s\n' "$1"
}

key=$(value resource_key_hex) room=$(value room_id) suite=$(value suite) key_id=$(value key_id)
sender=$(value sender) sender_keybox=$(value sender_keybox)

# Resource key id: the first 16 bytes of a hash over room and key, URL-safe base64 without padding.
id=$({ field com.trustner.keybox.resource_key_id; field "$room"; field_hex "$key"; } | sha256_hex)
id=$(unhex "${id:0:32}" | openssl base64 -A | tr '+/' '-_' | tr -d =)
expect 'resource key id' "$id" "$key_id"

# Wrap: RSA-OAEP, SHA-256 for both hashes, label = context.
{
  field com.trustner.keybox.wrap; field "$suite"; field "$room"; field "$key_id"; field "$sender"
  field "$sender_keybox"; field "$(value recipient)"; field "$(value recipient_keybox)"
} >"$work/label"
expect 'wrap context' "$(tohex <"$work/label")" "$(value wrap_context_hex)"
unbase64 "$(value recipient_rsa_private_pkcs8)" >"$work/rsa.der"
unbase64 "$(value wrap)" >"$work/wrap"
unwrapped=$(openssl pkeyutl -decrypt -inkey "$work/rsa.der" -keyform DER -in "$work/wrap" \
  -pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha256 -pkeyopt rsa_mgf1_md:sha256 \
  -pkeyopt "rsa_oaep_label:$(tohex <"$work/label")" | tohex)
expect 'unwrapped resource key' "$unwrapped" "$key"

# MAC: HMAC-SHA-256 under HKDF of the resource key.
mac_key=$(openssl kdf -keylen 32 -kdfopt digest:SHA256 -kdfopt "hexkey:$key" \
  -kdfopt info:com.trustner.keybox.v1.mac_key -binary HKDF | tohex)
expect 'MAC key' "$mac_key" "$(value mac_key_hex)"
{
  field com.trustner.keybox.message; field "$suite"; field "$room"; field "$key_id"; field "$sender"
  field "$sender_keybox"; field_hex "$(printf '%016x' "$(value counter)")"
} >"$work/context"
expect 'message context' "$(tohex <"$work/context")" "$(value message_context_hex)"
unhex "$(value iv_hex)" >"$work/iv"
unbase64 "$(value ciphertext)" >"$work/ciphertext"
mac=$({
  field com.trustner.keybox.v1.mac; field_file "$work/context"; field_file "$work/iv"; field_file "$work/ciphertext"
} | openssl dgst -sha256 -mac HMAC -macopt "hexkey:$mac_key" -binary | tohex)
expect 'MAC' "$mac" "$(value mac_hex)"

# Signature: Ed25519 over the hash of the envelope. The prefix makes a SubjectPublicKeyInfo of the 32 bytes.
unhex "$mac" >"$work/mac"
hash=$({
  field com.trustner.keybox.envelope; field_file "$work/context"; field_file "$work/iv"
  field_file "$work/ciphertext"; field_file "$work/mac"
} | sha256_hex)
expect 'envelope hash' "$hash" "$(value envelope_hash_hex)"
unhex "$hash" >"$work/hash"
{ unhex 302a300506032b6570032100; unbase64 "$(value sender_ed25519_public)"; } >"$work/ed25519.der"
unbase64 "$(value signature)" >"$work/signature"
openssl pkeyutl -verify -pubin -inkey "$work/ed25519.der" -keyform DER -rawin -in "$work/hash" \
  -sigfile "$work/signature" >/dev/null
echo 'ok   signature'

# Content, from the key alone.
plaintext=$(openssl enc -d -aes-256-ofb -K "$key" -iv "$(value iv_hex)" -in "$work/ciphertext")
expect 'plaintext' "$plaintext" "$(value plaintext)"
