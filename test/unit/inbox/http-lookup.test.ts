import type { LookupAddress } from 'node:dns';
import { expect, test } from 'vitest';
import { allowList } from '../../../src/core/target.js';
import { guardedLookup } from '../../../src/inbox/http-lookup.js';

function look(addresses: string[], all: boolean): Promise<unknown> {
  const resolve = () => Promise.resolve(addresses.map((address) => ({ address, family: 0 })));
  const lookup = guardedLookup(resolve, allowList(['10.0.0.0/8', 'fd00::/8']));
  return new Promise((done) => {
    lookup('billing.test', { all }, (error: Error | null, found: string | LookupAddress[], family?: number) =>
      done(error?.message ?? (all ? found : [found, family])),
    );
  });
}

test('SSRF: a connection is given only addresses that may be called, in their order', async () => {
  const mixed = ['169.254.169.254', '10.0.0.2', '8.8.8.8', 'fd00::1', '127.0.0.1', '10.0.0.1'];
  expect(await look(mixed, true)).toEqual([
    { address: '10.0.0.2', family: 4 },
    { address: 'fd00::1', family: 6 },
    { address: '10.0.0.1', family: 4 },
  ]);
  expect(await look(mixed, false)).toEqual(['10.0.0.2', 4]);
  expect(await look(['127.0.0.1', '8.8.8.8'], true)).toBe(
    'billing.test leads to 127.0.0.1 (loopback), 8.8.8.8 (in no network of the allow-list), where no handler may be',
  );
  expect(await look([], false)).toBe('billing.test has no address');
});
