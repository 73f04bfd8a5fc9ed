/** Converts bytes to base64 text and back, since payloads are strings. */

export type Bytes = Uint8Array<ArrayBuffer>;

/** The standard alphabet, padded. */
export function toBase64(bytes: Uint8Array): string {
  let text = '';
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}

/** @returns The bytes; undefined if the text is not standard base64 with its padding. */
export function fromBase64(text: string): Bytes | undefined {
  if (text.length % 4 !== 0 || !/^[A-Za-z0-9+/]*={0,2}$/.test(text)) return undefined;
  return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
}

/** The alphabet for URLs, without padding. */
export const toBase64Url = (bytes: Uint8Array): string =>
  toBase64(bytes).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');

/** @returns The bytes; undefined if the text is not base64 in the alphabet for URLs. */
export function fromBase64Url(text: string): Bytes | undefined {
  if (!/^[\w-]*$/.test(text)) return undefined;
  const padding = '='.repeat(-text.length & 3);
  return fromBase64(text.replaceAll('-', '+').replaceAll('_', '/') + padding);
}
