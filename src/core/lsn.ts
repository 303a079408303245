/**
 * A position in the write-ahead log, a 64-bit byte offset. Always compared as bigint: the server's text form is not
 * zero-padded and does not order as text. Source: https://www.postgresql.org/docs/current/datatype-pg-lsn.html
 */
export type Lsn = bigint;

export const LSN_ZERO: Lsn = 0n;

/** Reads `16/B374D848`; throws RangeError on anything else. */
export function parseLsn(text: string): Lsn {
  const match = /^([0-9A-Fa-f]{1,8})\/([0-9A-Fa-f]{1,8})$/.exec(text);
  if (!match) throw new RangeError(`not an LSN: ${JSON.stringify(text)}`);
  return (BigInt(`0x${match[1] ?? ''}`) << 32n) | BigInt(`0x${match[2] ?? ''}`);
}

/** Writes the form that PostgreSQL prints and accepts. */
export function formatLsn(lsn: Lsn): string {
  return `${(lsn >> 32n).toString(16).toUpperCase()}/${(lsn & 0xffffffffn).toString(16).toUpperCase()}`;
}

/** The later of two positions. */
export function maxLsn(a: Lsn, b: Lsn): Lsn {
  return a > b ? a : b;
}
