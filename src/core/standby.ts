const FIRST_MS = 500;
const LONGEST_MS = 5_000;

/**
 * How long a relay that stands by waits before it asks for the lock queue again, in ms: 0.25 to 0.5 s after the first
 * refusal, then twice as long each time, and from the fifth on 2.5 to 5 s. Why not always soon: RabbitMQ logs each
 * refusal as an error, and a takeover after seconds is soon enough. `refusals` counts from 1; `chance` is in [0, 1).
 */
export function standbyPauseMs(refusals: number, chance: number): number {
  const longest = Math.min(LONGEST_MS, FIRST_MS * 2 ** (refusals - 1));
  return (longest / 2) * (1 + chance);
}
