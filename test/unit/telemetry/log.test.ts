import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { WaybillError } from '../../../src/core/errors.js';
import { createLogger, type LogOptions } from '../../../src/telemetry/log.js';
import { createTextRedactor, REDACTED, Secrets, SHORTEST_SECRET } from '../../../src/telemetry/redact.js';

function logInto(lines: string[], options: Partial<LogOptions> = {}) {
  return createLogger({
    level: 'debug',
    format: 'json',
    secrets: new Secrets(),
    isTerminal: false,
    write: (line) => lines.push(line),
    ...options,
  });
}

/** Every string of a parsed line, names included. */
function stringsOf(value: unknown): string[] {
  if (typeof value === 'string') return [value];
  if (typeof value === 'number') return [String(value)];
  if (typeof value !== 'object' || value === null) return [];
  return Object.entries(value).flatMap(([name, item]) => [name, ...stringsOf(item)]);
}

describe('createLogger', () => {
  it('writes one JSON object a line with level, time, facts and message', () => {
    const lines: string[] = [];
    logInto(lines).info({ relay: 'orders' }, 'Started.');
    expect(lines).toHaveLength(1);
    expect(lines[0]?.endsWith('\n')).toBe(true);
    expect(JSON.parse(lines[0] ?? '')).toMatchObject({ level: 'info', relay: 'orders', msg: 'Started.' });
  });

  it('leaves out what is below its level', () => {
    const lines: string[] = [];
    const log = logInto(lines, { level: 'warn' });
    log.debug({}, 'a');
    log.info({}, 'b');
    log.warn({}, 'c');
    log.error({}, 'd');
    expect(lines.map((line) => (JSON.parse(line) as { msg: string }).msg)).toEqual(['c', 'd']);
  });

  it('keeps code, hint and causes of an error, but neither detail nor the stack of an expected one', () => {
    const lines: string[] = [];
    const cause = Object.assign(new Error('duplicate key'), { code: '23505', detail: 'Key (id)=(customer 7)' });
    const err = new WaybillError('WAYBILL_DATABASE_UNAVAILABLE', 'gone', { hint: 'look', cause });
    logInto(lines).error({ err }, 'Failed.');
    expect(JSON.parse(lines[0] ?? '')).toMatchObject({
      err: { code: 'WAYBILL_DATABASE_UNAVAILABLE', message: 'gone', hint: 'look', cause: { code: '23505' } },
    });
    expect(lines[0]).not.toContain('customer 7');
    expect(lines[0]).not.toContain('stack');
  });

  it('is readable on a terminal, and there too without secrets', () => {
    const lines: string[] = [];
    logInto(lines, { format: 'auto', isTerminal: true, secrets: new Secrets(['hunter22']) }).warn(
      { a: 'hunter22' },
      'Look out.',
    );
    expect(lines.join('')).toContain('Look out.');
    expect(lines.join('')).not.toContain('"msg"');
    expect(lines.join('')).not.toContain('hunter22');
  });

  it('nothing of it is obeyed by a terminal, whoever wrote it', () => {
    const bad = 'a\u001b[2Jb\u0007c\u009bd\u202ee\u007f';
    const err = new WaybillError('WAYBILL_BROKER_REFUSED', bad, { hint: bad });
    for (const format of ['pretty', 'json'] as const) {
      const lines: string[] = [];
      logInto(lines, { format }).error({ exchange: bad, err }, bad);
      const text = lines.join('');
      expect(text).toContain('[2Jb');
      expect(text.replaceAll('\n', '')).not.toMatch(/[\u0000-\u001f\u007f-\u009f\u202a-\u202e]/);
      if (format === 'json') expect(JSON.parse(text)).toMatchObject({ msg: bad, exchange: bad });
    }
  });

  it('a password that is a word of our own leaves what is shown readable', () => {
    const show = createTextRedactor(new Secrets(['waybill', 'Default', 'hunter22']));
    expect(show('waybill doctor: the default, hunter22 at postgres://u:waybill@h/waybill')).toBe(
      `waybill doctor: the default, ${REDACTED} at postgres://u:${REDACTED}@h/waybill`,
    );
  });

  it('no secret leaves, by whatever way it came into a line', () => {
    // What the format itself is made of cannot be kept out of it.
    const structure = `${REDACTED} level info time msg err name Error message code hint stack cause fields ${new Date().toISOString()}`;
    const secret = fc
      .string({ minLength: SHORTEST_SECRET, maxLength: 40, unit: 'binary' })
      .filter((text) => !structure.includes(text) && !/^[\d.:TZ-]*$/.test(text));
    const around = fc.string({ maxLength: 10, unit: 'binary' });
    fc.assert(
      fc.property(secret, around, around, (hidden, before, after) => {
        const lines: string[] = [];
        const text = `${before}${hidden}${after}${hidden}`;
        const err = new WaybillError('WAYBILL_BROKER_REFUSED', text, { hint: text, cause: new Error(text) });
        const fields = { text, [text]: 1, deep: { list: [text, { text }] }, err };
        logInto(lines, { secrets: new Secrets([hidden]) }).info(fields, text);
        logInto(lines, { secrets: new Secrets([hidden]) }).error({ err: new Error(text) }, text);
        for (const line of lines) {
          // Two halves of the surroundings may form the secret again around what was taken out; then nothing was shown.
          for (const shown of stringsOf(JSON.parse(line))) {
            for (const piece of shown.split(REDACTED)) expect(piece.includes(hidden)).toBe(false);
          }
        }
      }),
      { numRuns: 500 },
    );
  });

  it('takes the password out of any URL, known or not', () => {
    const lines: string[] = [];
    logInto(lines).info({ url: 'amqp://u:ab@h/v' }, 'at postgres://me:x%40y@h:5432/db?a=b.');
    expect(lines[0]).toContain(`amqp://u:${REDACTED}@h/v`);
    expect(lines[0]).toContain(`postgres://me:${REDACTED}@h:5432/db?a=b.`);
  });

  it('a secret that is part of another leaves no rest of it', () => {
    const redact = createTextRedactor(new Secrets(['abcd', 'abcdefgh']));
    expect(redact('xx abcdefgh yy abcd')).toBe(`xx ${REDACTED} yy ${REDACTED}`);
  });

  it('F113 a secret that is learned later is taken out too, and the old one still is', () => {
    const lines: string[] = [];
    const secrets = new Secrets(['old-password']);
    const logger = logInto(lines, { secrets });
    secrets.add(['new-password']);
    logger.info({}, 'new-password old-password');
    expect(lines[0]).toContain(`"${REDACTED} ${REDACTED}"`);
  });

  it('keeps the newest secrets when a command gives a new one at each connection', () => {
    const secrets = new Secrets();
    for (let n = 0; n < 1000; n++) secrets.add(['from-the-configuration', `token-${n}!`]);
    expect(secrets.takenOutOf('from-the-configuration token-999! token-951!')).not.toMatch(/configuration|token/);
    expect(secrets.takenOutOf('token-1!')).toBe('token-1!');
  });

  it('changes its level while it is used', () => {
    const lines: string[] = [];
    const logger = logInto(lines, { level: 'warn' });
    logger.info({}, 'one');
    logger.setLevel('debug');
    logger.debug({}, 'two');
    expect(lines).toHaveLength(1);
  });

  it('survives numbers that are secrets and fields that cannot be serialised', () => {
    const lines: string[] = [];
    const loop: Record<string, unknown> = { pin: 123456, big: 10n };
    loop['self'] = loop;
    logInto(lines, { secrets: new Secrets(['123456']) }).info(loop, 'loop');
    expect(lines[0]).not.toContain('123456');
  });
});
