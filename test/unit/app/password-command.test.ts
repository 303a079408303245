import { describe, expect, it } from 'vitest';
import { passwordFrom } from '../../../src/app/password-command.js';
import { createTextRedactor, REDACTED } from '../../../src/telemetry/redact.js';

const URL_TEXT = 'postgres://me%40corp:old-password@[::1]/shop';

/** A command that runs this script. */
function script(text: string, ...args: string[]): [string, ...string[]] {
  return [process.execPath, '-e', text, ...args];
}

const run = (command: readonly [string, ...string[]], limitMs?: number): Promise<string> =>
  passwordFrom(command, 'database', URL_TEXT, 5432, limitMs)();

describe('a password command', () => {
  it('gives what was printed without the space around it, and makes it a secret first', async () => {
    expect(await run(script('console.log("  fresh&token  ")'))).toBe('fresh&token');
    expect(createTextRedactor()('with fresh&token or fresh%26token')).toBe(`with ${REDACTED} or ${REDACTED}`);
  });

  it('knows host, port and user, and is run without a shell', async () => {
    const echo = 'console.log(process.argv.slice(1).join(" "))';
    expect(await run(script(echo, '{host}', '--at={host}:{port}', '{user}', '{other}', '$(id)'))).toBe(
      '::1 --at=::1:5432 me@corp {other} $(id)',
    );
  });

  it('is run anew each time', async () => {
    const password = passwordFrom(script('console.log("pid" + process.pid)'), 'broker', URL_TEXT, 5672);
    expect(await password()).not.toBe(await password());
  });

  it('does not wait for input', async () => {
    expect(await run(script('process.stdin.resume().on("end", () => console.log("given"))'))).toBe('given');
  });

  it.each<[[string, ...string[]], string]>([
    [script('process.exit(3)'), 'ended with exit code 3'],
    [script('console.log("  ")'), 'printed nothing'],
    [script('console.log("a\\nb")'), 'printed more than one line'],
    [script('console.log("x".repeat(100000))'), 'printed more than a password'],
    [script('process.kill(process.pid, "SIGTERM")'), 'was ended by SIGTERM'],
    [['/no/such/program'], 'could not be started (ENOENT)'],
    [script('x', 'a'.repeat(3_000_000)), 'could not be started (E2BIG)'],
  ])('%# fails in words', async (command, why) => {
    await expect(run(command)).rejects.toMatchObject({ code: 'WAYBILL_DATABASE_REFUSED' });
    await expect(run(command)).rejects.toThrow(`database.passwordCommand (${command[0]}) ${why}`);
  });

  it('is killed when it takes too long, also when a child of it keeps the output open', async () => {
    const hanging =
      'require("node:child_process").spawn("sleep", ["3"], { stdio: "inherit" }); setTimeout(() => {}, 3e4)';
    await expect(run(script(hanging), 300)).rejects.toThrow('took longer than 0.3 s');
  });

  it('tells neither what it writes to standard error nor its arguments', async () => {
    const failing = script('console.error("hidden-in-stderr"); process.exit(1)', 'hidden-in-argument');
    const error: unknown = await run(failing).catch((caught: unknown) => caught);
    expect(JSON.stringify([error, String(error), (error as Error).stack])).not.toContain('hidden-in');
  });
});
