import { isIPv4, isIPv6 } from 'node:net';

/** An IP address as its bytes: 4 or 16. An IPv4 address in IPv6 clothes (`::ffff:10.0.0.1`) is the IPv4 address. */
export type Address = readonly number[];

/** The address of a text as a resolver or a URL has it (with or without brackets); undefined for anything else. */
export function parseAddress(text: string): Address | undefined {
  if (isIPv4(text)) return text.split('.').map(Number);
  const bare = /^\[(.*)\]$/.exec(text)?.[1] ?? text;
  if (!isIPv6(bare)) return undefined;
  const bytes = ipv6Bytes(bare);
  return startsWith(bytes, V4_MAPPED) ? bytes.slice(12) : bytes;
}

/** A range of addresses, `10.0.0.0/8`; a single one has all its bits. */
export interface Network {
  address: Address;
  bits: number;
}

/** Reads an address or a range of addresses; undefined when it is neither, or has bits set behind its prefix. */
export function parseNetwork(text: string): Network | undefined {
  const [, host = '', prefix] = /^([^/]+)(?:\/(\d{1,3}))?$/.exec(text) ?? [];
  const address = parseAddress(host);
  if (!address) return undefined;
  const bits = prefix === undefined ? address.length * 8 : Number(prefix);
  if (bits > address.length * 8) return undefined;
  const network = { address, bits };
  return address.every((byte, index) => (byte & ~maskOf(bits, index) & 0xff) === 0) ? network : undefined;
}

export function isInside({ address, bits }: Network, candidate: Address): boolean {
  return (
    candidate.length === address.length &&
    address.every((byte, index) => (((candidate[index] ?? 0) ^ byte) & maskOf(bits, index)) === 0)
  );
}

export function isLoopback(address: Address): boolean {
  return LOOPBACK.some((network) => isInside(network, address));
}

/**
 * Why no handler can be at an address, whatever is allowed; undefined when one may be. Link-local addresses are where
 * clouds keep the credentials of the machine, and 0.0.0.0 is this machine under another name.
 */
export function forbiddenAs(address: Address): string | undefined {
  const found = FORBIDDEN.find(({ networks }) => networks.some((network) => isInside(network, address)));
  if (found) return found.why;
  const inner = embeddedIpv4(address);
  return inner && (isLoopback(inner) ? 'loopback in disguise' : forbiddenAs(inner));
}

/**
 * The IPv4 address that a gateway makes of an IPv6 one: NAT64, 6to4, Teredo, ISATAP, and the old compatible and translated
 * forms.
 */
function embeddedIpv4(address: Address): Address | undefined {
  if (address.length !== 16 || isLoopback(address)) return undefined;
  if (startsWith(address, SIX_TO_FOUR)) return address.slice(2, 6);
  if (startsWith(address, TEREDO)) return address.slice(12).map((byte) => byte ^ 0xff);
  // Behind any prefix; the second bit of its first byte says whether the IPv4 address is unique.
  if (startsWith(address.slice(9), ISATAP) && ((address[8] ?? 0) & ~2) === 0) return address.slice(12);
  return [NAT64, V4_COMPATIBLE, V4_TRANSLATED].some((prefix) => startsWith(address, prefix))
    ? address.slice(12)
    : undefined;
}

const zeros = (count: number): number[] => Array<number>(count).fill(0);
const V4_MAPPED = [...zeros(10), 0xff, 0xff];
const V4_COMPATIBLE = zeros(12);
const V4_TRANSLATED = [...zeros(8), 0xff, 0xff, 0, 0];
const NAT64 = [0, 0x64, 0xff, 0x9b, ...zeros(8)];
const SIX_TO_FOUR = [0x20, 0x02];
const TEREDO = [0x20, 0x01, 0, 0];
const ISATAP = [0, 0x5e, 0xfe];

const networks = (...texts: string[]): Network[] =>
  texts.map((text) => {
    const network = parseNetwork(text);
    if (!network) throw new TypeError(`${text} is no network`);
    return network;
  });
const LOOPBACK = networks('127.0.0.0/8', '::1');
const FORBIDDEN = [
  {
    why: 'a metadata address',
    // Amazon, Alibaba, Oracle, Azure's wire server; Amazon and Google by IPv6.
    networks: networks(
      '169.254.169.254',
      '100.100.100.200',
      '192.0.0.192',
      '168.63.129.16',
      'fd00:ec2::/32',
      'fd20:ce::/64',
    ),
  },
  { why: 'link-local', networks: networks('169.254.0.0/16', 'fe80::/10', 'fec0::/10') },
  { why: 'unspecified', networks: networks('0.0.0.0/8', '::') },
  { why: 'multicast', networks: networks('224.0.0.0/4', 'ff00::/8') },
  { why: 'reserved', networks: networks('240.0.0.0/4', '192.0.0.0/24') },
  // RFC 8215: which of its bytes are the IPv4 address, only the gateway knows.
  { why: 'translated by a gateway to an address that cannot be told', networks: networks('64:ff9b:1::/48') },
];

function startsWith(bytes: Address, prefix: readonly number[]): boolean {
  return prefix.every((byte, index) => bytes[index] === byte);
}

/** The bits of the byte at `index` that belong to a prefix of `bits`. */
function maskOf(bits: number, index: number): number {
  const ofThis = Math.min(8, Math.max(0, bits - index * 8));
  return (0xff << (8 - ofThis)) & 0xff;
}

function ipv6Bytes(text: string): number[] {
  const [head = '', tail] = withoutZone(text)
    .replace(/[\d.]+$/, hexOfIpv4)
    .split('::');
  const before = wordsOf(head);
  const after = tail === undefined ? [] : wordsOf(tail);
  return [...before, ...zeros(8 - before.length - after.length), ...after].flatMap((word) => [word >> 8, word & 0xff]);
}

function withoutZone(text: string): string {
  return text.split('%')[0] ?? '';
}

function hexOfIpv4(text: string): string {
  if (!isIPv4(text)) return text;
  const [a = 0, b = 0, c = 0, d = 0] = text.split('.').map(Number);
  return `${((a << 8) | b).toString(16)}:${((c << 8) | d).toString(16)}`;
}

function wordsOf(text: string): number[] {
  return text === '' ? [] : text.split(':').map((word) => Number.parseInt(word, 16));
}
