import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdtemp, realpath } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';

const scratches = new Set<Promise<Scratch>>();

/** Removes every folder of this process with the servers in it, also those that are being started; for a Ctrl-C. */
export async function removeEveryScratch(): Promise<void> {
  while (scratches.size > 0) {
    const open = [...scratches];
    await Promise.allSettled(open.map(async (scratch) => (await scratch).remove()));
    for (const scratch of open) scratches.delete(scratch);
  }
}

/**
 * A folder for one private server, with a watchdog: when this process closes it or dies, even by SIGKILL, the watched
 * processes are stopped and the folder is removed.
 */
export class Scratch {
  readonly folder: string;
  readonly #watchdog: ChildProcess;
  #removal: Promise<void> | undefined;

  private constructor(folder: string, watchdog: ChildProcess) {
    this.folder = folder;
    this.#watchdog = watchdog;
  }

  /** Makes the folder (others may enter it, because PostgreSQL runs as somebody else under root) and its watchdog. */
  static open(): Promise<Scratch> {
    const scratch = Scratch.make();
    scratches.add(scratch);
    return scratch;
  }

  private static async make(): Promise<Scratch> {
    const folder = await realpath(await mkdtemp(join(tmpdir(), 'waybill-')));
    await chmod(folder, 0o711);
    const script = fileURLToPath(new URL('./watchdog.sh', import.meta.url));
    // Why detached: Ctrl-C goes to the terminal's whole foreground group, and the watchdog must survive it.
    const watchdog = spawn('/bin/sh', [script, folder], {
      detached: true,
      cwd: '/',
      stdio: ['pipe', 'ignore', 'ignore'],
    });
    await once(watchdog, 'spawn');
    watchdog.stdin.on('error', () => undefined);
    watchdog.unref();
    (watchdog.stdin as Writable & { unref?: () => void }).unref?.();
    return new Scratch(folder, watchdog);
  }

  /** A path inside the folder. */
  path(...parts: string[]): string {
    return join(this.folder, ...parts);
  }

  /** Puts a process group leader under the watchdog. */
  watch(pid: number): void {
    this.#watchdog.stdin?.write(`watch ${pid}\n`);
  }

  /** Says that a watched process has ended, so that its number is never signalled again. */
  forget(pid: number): void {
    if (!this.#removal) this.#watchdog.stdin?.write(`forget ${pid}\n`);
  }

  /** Stops what is still running at once and removes the folder; resolves when both are done. */
  remove(): Promise<void> {
    this.#removal ??= (async () => {
      this.#watchdog.ref();
      const ended = once(this.#watchdog, 'exit');
      this.#watchdog.stdin?.end();
      if (this.#watchdog.exitCode === null && this.#watchdog.signalCode === null) await ended;
    })();
    return this.#removal;
  }
}
