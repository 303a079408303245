import { BlockList, isIP } from 'node:net';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { forbiddenAs, isInside, isLoopback, parseAddress, parseNetwork } from '../../../src/core/address.js';
import { allowList, isLoopbackHost, mayResolve, refusal } from '../../../src/core/target.js';

function check(host: string, at: string, ...allow: string[]): string | undefined {
  const address = parseAddress(at);
  if (!address) throw new Error(`${at} is no address`);
  return refusal(host, address, allowList(allow));
}

test('addresses are inside of networks as Node.js finds it', () => {
  const inV6 = fc.ipV6().filter((text) => parseAddress(text)?.length === 16);
  const cases = fc.oneof(
    fc.tuple(fc.ipV4(), fc.ipV4(), fc.integer({ min: 0, max: 32 })),
    fc.tuple(inV6, inV6, fc.integer({ min: 0, max: 128 })),
  );
  fc.assert(
    fc.property(cases, ([base, other, bits]) => {
      const kind = isIP(base) === 4 ? 'ipv4' : 'ipv6';
      const blocks = new BlockList();
      blocks.addSubnet(base, bits, kind);
      const network = { address: parseAddress(base)!, bits };
      expect(isInside(network, parseAddress(other)!)).toBe(blocks.check(other, kind));
      expect(isInside(network, parseAddress(base)!)).toBe(true);
    }),
    { numRuns: 500 },
  );
});

test('an IPv6 address has the bytes that the URL parser writes, in all its spellings', () => {
  fc.assert(
    fc.property(fc.ipV6(), (text) => {
      const canonical = new URL(`http://[${text}]/`).hostname;
      expect(parseAddress(canonical)).toEqual(parseAddress(text));
      expect(parseAddress(text.toUpperCase())).toEqual(parseAddress(text));
    }),
  );
  expect(parseAddress('1:2:3:4:5:6:7:8')).toEqual([0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0, 7, 0, 8]);
  expect(parseAddress('::ffff:10.0.0.1')).toEqual([10, 0, 0, 1]);
  expect(parseAddress('[::ffff:a00:1]')).toEqual([10, 0, 0, 1]);
  for (const text of ['', 'localhost', '10.0.0', '0x7f000001', '1::2::3', '[10.0.0.1', '127.0.0.1:80']) {
    expect(parseAddress(text)).toBeUndefined();
  }
});

test('a network needs its prefix, and no bits behind it', () => {
  expect(parseNetwork('10.1.0.0/16')).toEqual({ address: [10, 1, 0, 0], bits: 16 });
  expect(parseNetwork('10.1.2.3')).toEqual({ address: [10, 1, 2, 3], bits: 32 });
  for (const text of ['10.1.0.1/16', '10.0.0.0/33', '10.0.0.0/', 'host/8', '::1/64', '10.0.0.0/8/8']) {
    expect(parseNetwork(text)).toBeUndefined();
  }
});

test('SSRF: metadata, link-local, unspecified and multicast addresses are never called, in no disguise', () => {
  const everything = ['0.0.0.0/0', '::/0', 'evil.test'];
  const forbidden: [string, string][] = [
    ['169.254.169.254', 'metadata'],
    ['169.254.1.1', 'link-local'],
    ['100.100.100.200', 'metadata'],
    ['fd00:ec2::254', 'metadata'],
    ['fd20:ce::254', 'metadata'],
    ['168.63.129.16', 'metadata'],
    ['64:ff9b::a83f:8110', 'metadata'],
    ['64:ff9b:1:a9fe:a9:fe00::', 'translated'],
    ['64:ff9b:1::169.254.169.254', 'translated'],
    ['fe80::1', 'link-local'],
    ['febf::1', 'link-local'],
    ['0.0.0.0', 'unspecified'],
    ['0.1.2.3', 'unspecified'],
    ['::', 'unspecified'],
    ['224.0.0.1', 'multicast'],
    ['ff02::1', 'multicast'],
    ['255.255.255.255', 'reserved'],
    ['::ffff:169.254.169.254', 'metadata'],
    ['::ffff:0.0.0.0', 'unspecified'],
    ['64:ff9b::a9fe:a9fe', 'metadata'],
    ['64:ff9b::127.0.0.1', 'loopback in disguise'],
    ['2002:a9fe:a9fe::1', 'metadata'],
    ['2002:7f00:1::', 'loopback in disguise'],
    ['::127.0.0.1', 'loopback in disguise'],
    ['::ffff:0:127.0.0.1', 'loopback in disguise'],
  ];
  for (const [address, why] of forbidden) expect(check('evil.test', address, ...everything)).toContain(why);
  for (const address of ['10.0.0.1', '8.8.8.8', '2606:4700::1111', 'fd12::1', 'fe00::1']) {
    expect(forbiddenAs(parseAddress(address)!)).toBeUndefined();
  }
});

/** An IPv4 address in each of the clothes that some gateway takes off again. */
const disguises: Readonly<Record<string, (bytes: readonly number[]) => string>> = {
  mapped: (bytes) => `::ffff:${bytes.join('.')}`,
  'mapped, in hexadecimal': (bytes) => `::ffff:${hex(bytes)}`,
  'mapped, in full': (bytes) => `0:0:0:0:0:FFFF:${hex(bytes).toUpperCase()}`,
  'with a zone': (bytes) => `::ffff:${bytes.join('.')}%1`,
  compatible: (bytes) => `::${hex(bytes)}`,
  translated: (bytes) => `::ffff:0:${hex(bytes)}`,
  NAT64: (bytes) => `64:ff9b::${hex(bytes)}`,
  'NAT64 of the network itself': (bytes) => `64:ff9b:1::${hex(bytes)}`,
  'the same with a prefix of 48 bits': ([a, b, c, d]) => `64:ff9b:1:${hex([a!, b!])}:${hex([0, c!])}:${hex([d!, 0])}::`,
  '6to4': (bytes) => `2002:${hex(bytes)}::1`,
  Teredo: (bytes) => `2001:0:808:808:8000:7fff:${hex(bytes.map((byte) => byte ^ 0xff))}`,
  ISATAP: (bytes) => `2001:db8:1:2:0:5efe:${hex(bytes)}`,
  'ISATAP of a unique address': (bytes) => `2001:db8:1:2:200:5efe:${hex(bytes)}`,
};

/** Bytes as the words of an IPv6 address. */
function hex(bytes: readonly number[]): string {
  const words: string[] = [];
  for (let at = 0; at < bytes.length; at += 2)
    words.push((((bytes[at] ?? 0) << 8) | (bytes[at + 1] ?? 0)).toString(16));
  return words.join(':');
}

test('SSRF: what may never be called may not in any disguise, whichever names and networks are allowed', () => {
  const byte = fc.nat(255);
  const rest = (count: number) => fc.array(byte, { minLength: count, maxLength: count });
  const never = fc.oneof(
    ...['169.254.169.254', '100.100.100.200', '192.0.0.192', '168.63.129.16', '0.0.0.0', '255.255.255.255'].map(
      (text) => fc.constant(text.split('.').map(Number)),
    ),
    rest(2).map((tail) => [169, 254, ...tail]),
    rest(3).map((tail) => [127, ...tail]),
    rest(3).map((tail) => [0, ...tail]),
    fc.tuple(fc.integer({ min: 224, max: 255 }), rest(3)).map(([head, tail]) => [head, ...tail]),
  );
  const others = fc.oneof(
    rest(3).map((tail) => [10, ...tail]),
    rest(3).map((tail) => [8, ...tail]),
    fc.tuple(fc.constantFrom(167, 169), rest(2)).map(([head, tail]) => [head, 63, ...tail]),
  );
  const names = ['billing.test', '168.63.129.16', 'localhost'];
  const lists = [
    ['billing.test'],
    [...names, '0.0.0.0/0', '::/0'],
    ['::/0'],
    ['168.63.129.16', '169.254.0.0/16', '64:ff9b::/32'],
  ];
  fc.assert(
    fc.property(never, fc.constantFrom(...names), fc.constantFrom(...lists), (bytes, host, allow) => {
      for (const [form, write] of Object.entries({ plain: (each: number[]) => each.join('.'), ...disguises })) {
        const isOwn = bytes[0] === 127 && (form === 'plain' || form.startsWith('mapped') || form === 'with a zone');
        // This machine may be called by its own name, and by no other.
        if (isOwn && host === 'localhost') continue;
        // Two that are this machine and no disguise: :: and ::1.
        const at = write(bytes);
        if (at === '::0:1' && host === 'localhost') continue;
        expect(check(host, at, ...allow), `${form} ${at}`).toBeDefined();
      }
    }),
    { numRuns: 1_000 },
  );
  fc.assert(
    fc.property(others, (bytes) => {
      for (const [form, write] of Object.entries(disguises)) {
        const found = forbiddenAs(parseAddress(write(bytes))!);
        if (/network itself|48 bits/.test(form)) expect(found).toContain('translated');
        else expect(found, `${form} ${write(bytes)}`).toBeUndefined();
      }
    }),
    { numRuns: 300 },
  );
});

test('SSRF: this machine by its own names, others by the allow-list, and no name of others leads here', () => {
  for (const host of ['localhost', '127.0.0.1', '127.9.9.9', '[::1]']) expect(isLoopbackHost(host)).toBe(true);
  for (const host of ['localhost.evil.test', '128.0.0.1', '[::2]', 'loopback'])
    expect(isLoopbackHost(host)).toBe(false);
  expect(isLoopback(parseAddress('::ffff:127.0.0.1')!)).toBe(true);

  expect(check('localhost', '127.0.0.1')).toBeUndefined();
  expect(check('localhost', '::1')).toBeUndefined();
  expect(check('localhost', '10.0.0.1', '10.0.0.0/8')).toBe('not loopback');

  expect(check('billing.test', '10.0.0.1')).toBe('not in the allow-list');
  expect(check('billing.test', '10.0.0.1', 'billing.test')).toBeUndefined();
  expect(check('billing.test', '10.0.0.1', 'Billing.Test')).toBeUndefined();
  expect(check('billing.test.evil', '10.0.0.1', 'billing.test')).toBe('not in the allow-list');
  expect(check('billing.test', '127.0.0.1', 'billing.test')).toBe('loopback');
  expect(check('billing.test', '::1', 'billing.test', '::1')).toBe('loopback');

  // A network narrows what a name may lead to.
  expect(check('billing.test', '10.0.0.1', 'billing.test', '10.0.0.0/8')).toBeUndefined();
  expect(check('billing.test', '11.0.0.1', 'billing.test', '10.0.0.0/8')).toContain('in no network');
  expect(check('billing.test', '::ffff:10.0.0.1', '10.0.0.0/8')).toBeUndefined();

  expect(mayResolve('billing.test', allowList([]))).toBe(false);
  expect(mayResolve('billing.test', allowList(['billing.test']))).toBe(true);
  expect(mayResolve('localhost', allowList([]))).toBe(true);
});
