import { totalmem } from 'node:os';
import type { Config } from '../config/load.js';
import { MOST_HELD_BYTES } from '../inbox/receiver.js';
import { ok, warn, type Finding } from './doctor-findings.js';

const MEBIBYTE = 2 ** 20;

/** Bytes of memory that this process may have: the limit of its container, or the machine. */
export function memoryHere(): number {
  const limit = process.constrainedMemory();
  return limit > 0 ? Math.min(limit, totalmem()) : totalmem();
}

/**
 * F110: the bodies that may be in memory at once, of the relay's window and of each consumer, against `memoryBytes`.
 * Prefetch times the largest body counts up to what a receiver holds before it asks for less. Pure.
 */
export function checkMemory({ relay, consumers }: Config, memoryBytes: number): Finding {
  const id = 'memory';
  const inbound = consumers.map(({ name, prefetch, maxBodyBytes }) => ({
    key: `consumers.${name}.prefetch x maxBodyBytes`,
    bytes: Math.min(prefetch * maxBodyBytes, MOST_HELD_BYTES + maxBodyBytes),
  }));
  const outbound = relay.enabled ? [{ key: 'relay.maxInFlightBytes', bytes: relay.maxInFlightBytes }] : [];
  const parts = [...outbound, ...inbound].sort((one, other) => other.bytes - one.bytes);
  const bytes = parts.reduce((sum, part) => sum + part.bytes, 0);
  const said = `bodies may take ${inMiB(bytes)} of ${inMiB(memoryBytes)} of memory at once`;
  if (bytes <= memoryBytes / 2) return ok(id, said);
  const [largest] = parts;
  return warn(
    id,
    `${said}, more than half; most of it by ${largest?.key ?? ''} (${inMiB(largest?.bytes ?? 0)})`,
    `lower maxBodyBytes to what your messages are, or prefetch or relay.maxInFlightBytes, or give it ${inMiB(bytes * 2)} (this is the memory where doctor runs)`,
  );
}

function inMiB(bytes: number): string {
  return `${Math.ceil(bytes / MEBIBYTE).toLocaleString('en')} MiB`;
}
