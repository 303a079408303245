import { describe, expect, it } from 'vitest';
import { repeat } from '../../../src/cli/watch.js';
import { ManualClock, turn } from '../../support/manual-clock.js';

/** A terminal under the test's eyes. */
function stage({
  outIsTerminal,
  rows,
  paint,
}: {
  outIsTerminal: boolean;
  rows?: number;
  paint?: () => Promise<string>;
}) {
  const written: string[] = [];
  const clock = new ManualClock();
  let signal: (name: NodeJS.Signals) => void = () => undefined;
  let count = 0;
  const context = {
    out: (text: string) => void written.push(text),
    outIsTerminal,
    outRows: () => rows,
    onSignal: (listener: typeof signal) => (signal = listener),
  };
  const ended = repeat(context, clock, 2_000, paint ?? (() => Promise.resolve(`block ${(count += 1)}\nline`)));
  return { written, clock, ended, signal: (name: NodeJS.Signals) => signal(name) };
}

describe('repeating a status', () => {
  it('writes blocks one after the other where there is no terminal, and ends at a signal', async () => {
    const { written, clock, ended, signal } = stage({ outIsTerminal: false });
    await turn();
    expect(written).toEqual(['block 1\nline\n']);
    clock.advance(1_999);
    await turn();
    expect(written.length).toBe(1);
    clock.advance(1);
    await turn();
    expect(written).toEqual(['block 1\nline\n', 'block 2\nline\n']);
    signal('SIGINT');
    await ended;
    expect(clock.pending).toBe(0);
  });

  it('paints in place on a terminal and gives it back as it was', async () => {
    const { written, ended, signal } = stage({ outIsTerminal: true });
    await turn();
    signal('SIGINT');
    await ended;
    expect(written).toEqual([
      '\u001b[?1049h\u001b[?25l\u001b[?7l',
      '\u001b[Hblock 1\u001b[K\nline\u001b[K\u001b[J',
      '\u001b[?7h\u001b[?25h\u001b[?1049l',
    ]);
  });

  const shownOn = async (rows: number, lines: readonly string[]): Promise<string[]> => {
    const paint = () => Promise.resolve(`${lines.join('\n')}\n`);
    const { written, ended, signal } = stage({ outIsTerminal: true, rows, paint });
    await turn();
    signal('SIGTERM');
    await ended;
    return (written[1] ?? '').replaceAll(/\u001b\[[HKJ]/g, '').split('\n');
  };
  const facts = Array.from({ length: 25 }, (_, n) => `fact ${n}`);
  const more = (n: number) => `... ${n} lines more than the terminal has room for`;

  it('cuts the facts in the middle, so that the problems are seen and nothing scrolls', async () => {
    const problems = ['PROBLEMS', '  - one', '    next: waybill doctor'];
    const whole = ['status at', '', ...facts, '', ...problems];
    expect(await shownOn(31, whole)).toEqual(whole);
    expect(await shownOn(24, whole)).toEqual([...whole.slice(0, 20), more(8), ...problems]);
    expect(await shownOn(5, whole)).toEqual(['status at', more(27), ...problems]);
  });

  it('shows the first problems where there is no room for all', async () => {
    const problems = ['PROBLEMS', ...Array.from({ length: 40 }, (_, n) => `  - ${n}`)];
    const whole = ['status at', '', ...facts, '', ...problems];
    expect(await shownOn(24, whole)).toEqual(['status at', ...problems.slice(0, 22), more(46)]);
    expect(await shownOn(1, whole)).toEqual([more(69)]);
    expect(await shownOn(3, ['1', '2', '3', '4', '5'])).toEqual(['1', '2', more(3)]);
  });

  it('gives the terminal back when something goes wrong', async () => {
    const { written, ended } = stage({ outIsTerminal: true, paint: () => Promise.reject(new Error('broken')) });
    await expect(ended).rejects.toThrow('broken');
    expect(written.at(-1)).toContain('?1049l');
  });

  it('ends at once also while a server does not answer', async () => {
    const { ended, signal, written } = stage({ outIsTerminal: true, paint: () => new Promise<never>(() => undefined) });
    await turn();
    signal('SIGINT');
    await ended;
    expect(written.at(-1)).toContain('?1049l');
  });
});
