import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { carriesToken, refusalOf } from '../../../src/admin/guard.js';

const names = new Set(['waybill.internal']);
const status = (headers: Record<string, string>, method = 'GET') => refusalOf({ method, headers }, names)?.status;

describe('who may ask the admin server', () => {
  it.each(['127.0.0.1:9809', 'localhost', 'LOCALHOST:1', '[::1]:9809', '10.1.2.3:80', 'waybill.internal:9809'])(
    'Host %s is answered',
    (host) => expect(status({ host })).toBeUndefined(),
  );

  it.each([
    'evil.example',
    'evil.example:9809',
    'localhost.evil.example',
    'waybill.internal.evil.example',
    '127.0.0.1.nip.io',
  ])('DNS rebinding: Host %s is refused', (host) => expect(status({ host })).toBe(403));

  it.each(['', 'a b', 'user@localhost', '[localhost]', 'localhost:port', 'localhost/..'])(
    'Host "%s" is no host',
    (host) => expect(status({ host })).toBe(400),
  );

  it('no Host at all is refused', () => expect(refusalOf({ method: 'GET', headers: {} }, names)?.status).toBe(400));

  it.each(['http://evil.example', 'https://localhost:9809', 'http://localhost:9810', 'null', ''])(
    'a page of origin "%s" is refused',
    (origin) => expect(status({ host: 'localhost:9809', origin })).toBe(403),
  );

  it('a page of its own origin is answered', () =>
    expect(status({ host: 'localhost:9809', origin: 'http://localhost:9809' })).toBeUndefined());

  it.each(['cross-site', 'same-site'])('a browser that says the request is %s is refused', (site) =>
    expect(status({ host: 'localhost', 'sec-fetch-site': site })).toBe(403),
  );

  it.each(['POST', 'PUT', 'DELETE', 'OPTIONS', 'TRACE'])('%s is refused', (method) =>
    expect(status({ host: 'localhost' }, method)).toBe(405),
  );

  it('a body is refused', () => {
    expect(status({ host: 'localhost', 'content-length': '1' })).toBe(413);
    expect(status({ host: 'localhost', 'content-length': 'x' })).toBe(413);
    expect(status({ host: 'localhost', 'transfer-encoding': 'chunked' })).toBe(413);
    expect(status({ host: 'localhost', 'content-length': '0' })).toBeUndefined();
  });
});

describe('the token', () => {
  const token = 'abcdefghijklmnop0123';
  const carries = (authorization?: string) =>
    carriesToken({ headers: authorization === undefined ? {} : { authorization } }, token);

  it('is taken whole and in the right scheme', () => {
    expect(carries(`Bearer ${token}`)).toBe(true);
    expect(carries(`bearer ${token}`)).toBe(true);
    for (const wrong of [undefined, '', token, `Basic ${token}`, `Bearer  ${token}`, `Bearer ${token} `, 'Bearer ']) {
      expect([wrong, carries(wrong)]).toEqual([wrong, false]);
    }
  });

  it('no other text passes', () => {
    fc.assert(
      fc.property(fc.string(), (other) => other === token || !carries(`Bearer ${other}`)),
      {
        examples: [[token.slice(0, -1)], [`${token}x`], [token.toUpperCase()], ['']],
      },
    );
  });
});
