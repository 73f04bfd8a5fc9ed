/** IP addresses as limits count them. Apart from who is calling, since most callers need none of the library. */
import ipaddr from 'ipaddr.js';
import type { Caller } from './client-address.ts';

/** An address without brackets, port or zone; IPv4-mapped IPv6 is IPv4. Undefined where it is none. */
export function parseAddress(text: string): ipaddr.IPv4 | ipaddr.IPv6 | undefined {
  const value = text.trim();
  const bare =
    /^\[([^\]]+)\](?::\d{1,5})?$/.exec(value)?.[1] ?? value.replace(/^([\d.]+):\d{1,5}$/, '$1');
  if (ipaddr.IPv4.isValidFourPartDecimal(bare)) return ipaddr.IPv4.parse(bare);
  if (!ipaddr.IPv6.isValid(bare)) return undefined;
  const address = ipaddr.IPv6.parse(bare);
  return address.isIPv4MappedAddress() ? address.toIPv4Address() : address;
}

/** @returns Undefined where the text is no address. */
export function callerAt(text: string, source: string): Caller | undefined {
  const address = parseAddress(text);
  if (address === undefined) return undefined;
  if (address instanceof ipaddr.IPv4) {
    const whole = address.toString();
    return { client: whole, address: whole, source };
  }
  const network = address.parts.slice(0, 4).map((part) => part.toString(16));
  return {
    client: `${network.join(':')}::/64`,
    address: new ipaddr.IPv6(address.parts).toString(),
    source,
  };
}
