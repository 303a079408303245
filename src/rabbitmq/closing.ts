import { within, type Clock } from '../runtime/clock.js';

const CLOSE_LIMIT_MS = 2_000;

/** Waits for a handshake of the client, for at most 2 s and whatever comes of it: it never ends when the socket dies meanwhile (fact 34). */
export async function handshake(work: Promise<unknown>, clock: Clock): Promise<void> {
  await within(
    clock,
    work.then(
      () => undefined,
      () => undefined,
    ),
    CLOSE_LIMIT_MS,
    undefined,
  );
}
