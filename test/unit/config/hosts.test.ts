import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { hostUrls, staysLocal } from '../../../src/config/hosts.js';

describe('hostUrls', () => {
  it.each([
    ['postgres://u:p@h1:5432,h2:5433/db?a=b', ['postgres://u:p@h1:5432/db?a=b', 'postgres://u:p@h2:5433/db?a=b']],
    ['postgres://u:p@[::1]:5432,[fe80::1]/db', ['postgres://u:p@[::1]:5432/db', 'postgres://u:p@[fe80::1]/db']],
    ['amqps://mq1,mq2/%2f', ['amqps://mq1/%2f', 'amqps://mq2/%2f']],
    ['postgres://u:a,b@h1,h2', ['postgres://u:a,b@h1', 'postgres://u:a,b@h2']],
    ['postgres://u:a@b,c@h1/db', ['postgres://u:a@b,c@h1/db']],
    ['postgres://u:p@[::1]:5432/db', ['postgres://u:p@[::1]:5432/db']],
    ['postgres:///db?host=/run/postgresql', ['postgres:///db?host=/run/postgresql']],
    ['no url, at all', ['no url, at all']],
  ])('%s', (url, urls) => expect(hostUrls(url)).toEqual(urls));

  it('takes any list of hosts apart, and no password by mistake', () => {
    const hosts = fc.array(fc.constantFrom('h1', 'db.example:5433', '10.0.0.1', '[::1]:5432', '[fe80::1]'), {
      minLength: 1,
      maxLength: 5,
    });
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), hosts, (password, list) => {
        const before = `postgres://u:${password.replaceAll(/[^a-z0-9]/g, (sign) => `,${sign.length}`)}@`;
        expect(hostUrls(`${before}${list.join(',')}/db`)).toEqual(list.map((host) => `${before}${host}/db`));
      }),
    );
  });
});

it('staysLocal asks every host', () => {
  expect(staysLocal('amqp://127.0.0.1,[::1]:5673,localhost/')).toBe(true);
  expect(staysLocal('amqp://127.0.0.1,mq.example/')).toBe(false);
});
