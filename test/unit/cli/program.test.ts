import { describe, expect, it } from 'vitest';
import type { CliContext } from '../../../src/cli/context.js';
import { exitCodeOf, formatFailure } from '../../../src/cli/failure.js';
import { runCli } from '../../../src/cli/program.js';
import { WaybillError, type WaybillErrorCode } from '../../../src/core/errors.js';
import { knownSecrets } from '../../../src/telemetry/redact.js';

async function waybill(args: string[], environment: Record<string, string> = {}, files: Record<string, string> = {}) {
  let out = '';
  let err = '';
  const context: CliContext = {
    environment,
    readFile: (path) => {
      const text = files[path];
      if (text === undefined) throw Object.assign(new Error('none'), { code: 'ENOENT' });
      return text;
    },
    exists: (path) => files[path] !== undefined,
    writeNew: (path, text) => void (files[path] = text),
    out: (text) => (out += text),
    err: (text) => (err += text),
    outIsTerminal: false,
    ask: undefined,
    onSignal: () => undefined,
  };
  const code = await runCli(args, '1.2.3', context);
  return { code, out, err };
}

/** Every command that has none beneath it, with its help. */
async function leaves(path: string[] = []): Promise<{ name: string; help: string }[]> {
  const { out } = await waybill([...path, '--help']);
  const [, commands] = out.split(/^Commands:$/m);
  if (commands === undefined) return [{ name: path.join(' '), help: out }];
  const names = [...commands.matchAll(/^ {2}(\w+)/gm)].map(([, name]) => name ?? '').filter((name) => name !== 'help');
  return (await Promise.all(names.map((name) => leaves([...path, name])))).flat();
}

describe('the command line', () => {
  it.each([
    [['--version'], '1.2.3'],
    [['--help'], 'status'],
    [['run', '--help'], '--config'],
    [['config', 'reference'], '`relay.maxInFlight`'],
    [['migrate', 'print'], 'create table waybill.outbox'],
    [['migrate', 'print', '--schema', 'shop'], 'create table "shop".outbox'],
    [['migrate', 'print', '--roles'], 'waybill_relay'],
  ])('%j ends with 0 and needs no configuration', async (args, expected) => {
    const { code, out, err } = await waybill(args);
    expect({ code, err }).toEqual({ code: 0, err: '' });
    expect(out).toContain(expected);
  });

  it('every command offers its answer as JSON, but those that write logs, SQL, markdown or JSON in any case', async () => {
    const all = await leaves();
    expect(all.length).toBeGreaterThan(35);
    const without = all.filter(({ help }) => !help.includes('--json')).map(({ name }) => name);
    expect(without).toEqual(['run', 'migrate print', 'dead export', 'topology export', 'config reference']);
  });

  it('outbox replay offers no filter that the history cannot answer', async () => {
    expect((await waybill(['outbox', 'replay', '--help'])).out).not.toContain('--error');
    expect((await waybill(['outbox', 'retry', '--help'])).out).toContain('--error');
  });

  it.each([
    [['statsu'], 'Did you mean status?'],
    [['run', '--only', 'nothing'], 'relay'],
    [['migrate', 'print', '--schema', 'Bad'], 'a-z'],
    [['migrate', 'print', '--from', '0'], 'whole number'],
    [['relay', 'adopt', '--expect', 'x'], 'doctor'],
    [['relay', 'drop'], 'name'],
    [['outbox', 'list', '--state', 'lost'], 'parked'],
    [['outbox', 'list', '--since', '5'], 'unit'],
    [['outbox', 'list', '--limit', '0'], 'whole number'],
    [['outbox', 'show', 'x'], 'UUID'],
    [['outbox', 'retry'], '--all'],
    [['outbox', 'retry', 'x'], 'UUID'],
    [['outbox', 'retry', '--all', '--state', 'ready'], 'parked'],
    [['outbox', 'discard', '--all', '00000000-0000-4000-8000-000000000001'], 'not both'],
    [['outbox', 'discard', '00000000-0000-4000-8000-000000000001', '--type', 't'], '--type goes with --all'],
    [['status', '--jsn'], '--json'],
    [[], 'Usage'],
  ])('%j is a usage error, 2', async (args, expected) => {
    const { code, err } = await waybill(args);
    expect(code).toBe(2);
    expect(err).toContain(expected);
  });

  it.each([
    ['run'],
    ['status'],
    ['doctor'],
    ['migrate'],
    ['migrate', 'status'],
    ['relay', 'list'],
    ['config', 'check'],
  ])('%s without a configuration tells what is missing, 2', async (...args) => {
    const { code, err, out } = await waybill(args);
    expect({ code, out }).toEqual({ code: 2, out: '' });
    expect(err).toContain('WAYBILL_DATABASE_URL');
    expect(err).toContain('code: WAYBILL_CONFIG_INVALID');
  });

  it('reads the file of --config, before or after the command, or of WAYBILL_CONFIG', async () => {
    const files = { f: 'database: { url: "postgres://localhost/a" }\nbroker: { url: "amqp://localhost" }' };
    for (const args of [
      ['--config', 'f', 'config', 'check'],
      ['config', 'check', '-c', 'f'],
    ]) {
      expect(await waybill(args, {}, files)).toMatchObject({ code: 0 });
    }
    expect(await waybill(['config', 'check'], { WAYBILL_CONFIG: 'f' }, files)).toMatchObject({ code: 0 });
    const missing = await waybill(['config', 'check', '-c', 'g'], {}, files);
    expect(missing.code).toBe(2);
    expect(missing.err).toContain('--config names g, which cannot be read (ENOENT)');
  });
});

describe('failures', () => {
  it.each<[WaybillErrorCode, number]>([
    ['WAYBILL_CONFIG_INVALID', 2],
    ['WAYBILL_SCHEMA_MISSING', 3],
    ['WAYBILL_SCHEMA_TOO_OLD', 3],
    ['WAYBILL_SCHEMA_TOO_NEW', 3],
    ['WAYBILL_DATABASE_UNAVAILABLE', 1],
    ['WAYBILL_DRAIN_INCOMPLETE', 1],
  ])('%s ends with %i', (code, exitCode) => expect(exitCodeOf(new WaybillError(code, 'x'))).toBe(exitCode));

  it('write nothing that a terminal obeys, whoever it comes from', async () => {
    const { err } = await waybill(['stat\u009b2J\u202e']);
    expect(err).toContain('stat\\u009b2J\\u202e');
    expect(err).not.toMatch(/[\u007f-\u009f\u202a-\u202e]/);
  });

  it('show message, code and mend; the stack only when asked for; secrets and control characters never', () => {
    const error = new WaybillError('WAYBILL_DATABASE_REFUSED', 'bad \u001b[31m pass-word', {
      hint: 'mend it',
      cause: new Error('c'),
    });
    knownSecrets.add(['pass-word']);
    const plain = formatFailure(error, { verbose: false });
    expect(plain).toBe('waybill: bad \ufffd[31m [redacted]\n  code: WAYBILL_DATABASE_REFUSED\n  mend: mend it\n');
    const verbose = formatFailure(error, { verbose: true });
    expect(verbose).toContain('caused by:');
    expect(verbose).not.toContain('pass-word');
  });
});
