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

  it('shows no more lines than the terminal has, so that nothing scrolls', async () => {
    const paint = () => Promise.resolve(['1', '2', '3', '4', '5'].join('\n'));
    const { written, ended, signal } = stage({ outIsTerminal: true, rows: 3, paint });
    await turn();
    signal('SIGTERM');
    await ended;
    expect(written[1]).toBe('\u001b[H1\u001b[K\n2\u001b[K\n...\u001b[K\u001b[J');
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
