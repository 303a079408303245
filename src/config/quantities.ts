import type { Rate } from '../core/token-bucket.js';

/** A value, or what is wrong with it and how to mend that; neither text ever repeats a secret. */
export type Parsed<T> = { value: T } | { problem: string; mend: string };

const MS_PER_UNIT: Readonly<Record<string, number>> = {
  ms: 1,
  s: 1_000,
  m: 60_000,
  h: 3_600_000,
  d: 86_400_000,
};

const BYTES_PER_UNIT: Readonly<Record<string, number>> = {
  B: 1,
  kB: 1e3,
  MB: 1e6,
  GB: 1e9,
  TB: 1e12,
  KiB: 2 ** 10,
  MiB: 2 ** 20,
  GiB: 2 ** 30,
  TiB: 2 ** 40,
};

/** Reads `200ms`, `30s`, `10m`, `1h`, `7d` into milliseconds; a number without a unit is refused. */
export function parseDuration(raw: unknown): Parsed<number> {
  return parseQuantity(raw, MS_PER_UNIT, { what: 'a duration', examples: '"200ms", "30s", "10m", "1h" or "7d"' });
}

/** Reads `64MiB`, `4GiB`, `15MB`, `512B` into bytes; a number without a unit is refused. */
export function parseSize(raw: unknown): Parsed<number> {
  return parseQuantity(raw, BYTES_PER_UNIT, { what: 'a size', examples: '"512KiB", "64MiB", "15MB" or "4GiB"' });
}

/** Reads `50/s`, `600/m`, `10000/h`: up to 100,000 a second. */
export function parseRate(raw: unknown): Parsed<Rate> {
  const match = typeof raw === 'string' ? /^(\d{1,6})\s*\/\s*(s|m|h)$/.exec(raw.trim()) : null;
  const [, digits = '', unit = ''] = match ?? [];
  const rate = { count: Number(digits), perMs: MS_PER_UNIT[unit] ?? 0 };
  if (rate.count > 0 && rate.count / rate.perMs <= 100) return { value: rate };
  return { problem: 'is not a rate', mend: 'write it like "50/s", "600/m" or "10000/h", at most 100000/s' };
}

/** Writes milliseconds in the largest unit that divides them: `10m`, `1500ms`. */
export function formatDuration(ms: number): string {
  return formatQuantity(ms, MS_PER_UNIT, ['d', 'h', 'm', 's', 'ms']);
}

/** Writes bytes in the largest binary unit that divides them: `64MiB`. */
export function formatSize(bytes: number): string {
  return formatQuantity(bytes, BYTES_PER_UNIT, ['TiB', 'GiB', 'MiB', 'KiB', 'B']);
}

interface QuantityWords {
  what: string;
  examples: string;
}

function parseQuantity(
  raw: unknown,
  units: Readonly<Record<string, number>>,
  { what, examples }: QuantityWords,
): Parsed<number> {
  const text = typeof raw === 'string' ? raw.trim() : raw;
  if (typeof text === 'number' || (typeof text === 'string' && /^\d+(\.\d+)?$/.test(text))) {
    return { problem: `has no unit (${text})`, mend: `write ${what} with its unit, such as ${examples}` };
  }
  const match = typeof text === 'string' ? /^(\d+(?:\.\d+)?)\s*([A-Za-z]+)$/.exec(text) : null;
  if (!match) return { problem: `is not ${what}`, mend: `write it like ${examples}` };
  const [, digits = '', unit = ''] = match;
  const perUnit = Object.hasOwn(units, unit) ? units[unit] : undefined;
  if (perUnit === undefined) {
    return {
      problem: `has the unknown unit "${unit.slice(0, 12)}"`,
      mend: `the units are ${Object.keys(units).join(', ')}`,
    };
  }
  const amount = Number(digits) * perUnit;
  if (!Number.isSafeInteger(amount)) {
    return {
      problem: 'is not a whole number of the smallest unit, or is too large',
      mend: `write it like ${examples}`,
    };
  }
  return { value: amount };
}

function formatQuantity(amount: number, units: Readonly<Record<string, number>>, largestFirst: string[]): string {
  const smallest = largestFirst.at(-1) ?? '';
  const unit = amount === 0 ? smallest : (largestFirst.find((name) => amount % (units[name] ?? 1) === 0) ?? smallest);
  return `${amount / (units[unit] ?? 1)}${unit}`;
}
