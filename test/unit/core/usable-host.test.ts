import { describe, expect, it } from 'vitest';
import { WaybillError, type WaybillErrorCode } from '../../../src/core/errors.js';
import { firstUsable, hostName, type Unusable } from '../../../src/core/usable-host.js';

it('hostName has the port and no secret', () => {
  expect(hostName('postgres://u:p@h1/db', 5432)).toBe('h1:5432');
  expect(hostName('postgres://u:p@[::1]:5433/db', 5432)).toBe('[::1]:5433');
  expect(hostName('postgres:///db?host=/run/pg', 5432)).toBe('/run/pg');
  expect(hostName('postgres:///db', 5432)).toBe('localhost:5432');
});

describe('firstUsable', () => {
  const refused = new WaybillError('WAYBILL_DATABASE_REFUSED', 'wrong password', { hint: 'mend it' });
  const away = new WaybillError('WAYBILL_DATABASE_UNAVAILABLE', 'ECONNREFUSED');
  const standby = new WaybillError('WAYBILL_DATABASE_UNSUITABLE', 'it is a standby');
  const gravest: WaybillErrorCode[] = ['WAYBILL_DATABASE_REFUSED', 'WAYBILL_DATABASE_UNAVAILABLE'];

  function choose(answers: (Error | string)[], onUnusable?: (unusable: Unusable) => void) {
    const tried: string[] = [];
    const [first, ...others] = answers.map((answer, index) => ({
      url: `postgres://u:secret@h${index + 1}/db`,
      answer,
    }));
    const result = firstUsable({
      hosts: [first!, ...others],
      defaultPort: 5432,
      gravest,
      onUnusable,
      open: ({ url, answer }) => {
        tried.push(hostName(url, 5432));
        return answer instanceof Error ? Promise.reject(answer) : Promise.resolve(answer);
      },
    });
    return { tried, result };
  }

  it('gives the first that can be used, tells of those before it and leaves the others', async () => {
    const told: string[] = [];
    const { tried, result } = choose([away, standby, 'mine', 'other'], ({ host, error }) =>
      told.push(`${host} ${error.code}`),
    );
    expect(await result).toBe('mine');
    expect(tried).toEqual(['h1:5432', 'h2:5432', 'h3:5432']);
    expect(told).toEqual(['h1:5432 WAYBILL_DATABASE_UNAVAILABLE', 'h2:5432 WAYBILL_DATABASE_UNSUITABLE']);
  });

  it.each([
    [[standby, away], 'WAYBILL_DATABASE_UNAVAILABLE'],
    [[standby, away, refused], 'WAYBILL_DATABASE_REFUSED'],
    [[standby, standby], 'WAYBILL_DATABASE_UNSUITABLE'],
  ])('%# names every host and why, and no secret', async (errors, code) => {
    const error: unknown = await choose(errors).result.catch((caught: unknown) => caught);
    expect(error).toMatchObject({ code });
    const { message } = error as Error;
    errors.forEach((each, index) => expect(message).toContain(`h${index + 1}:5432: ${each.message}`));
    expect(message).not.toContain('secret');
  });

  it('passes the error of a host that stands alone, and what no host is to blame for', async () => {
    await expect(choose([refused]).result).rejects.toBe(refused);
    const defect = new TypeError('a defect');
    await expect(choose([defect, 'mine']).result).rejects.toBe(defect);
  });
});
