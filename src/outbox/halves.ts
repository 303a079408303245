import { refusalOf, type Refusal } from './refusal.js';

/** A statement that the table refuses whatever its rows: a trigger for each statement, for example. */
export interface RefusedStatement {
  refusal: Refusal;
  error: unknown;
}

/**
 * Does the statement with all rows. When the table refuses that, with each half of them, and so on: each row that it
 * refuses alone is handed over, and the others get through. Ends early after `most` such rows. A statement that is
 * refused without any row is nobody's fault: it is given back, and nothing was handed over.
 */
export async function inHalves<T>(
  rows: readonly T[],
  most: number,
  statement: (part: readonly T[]) => Promise<void>,
  refuse: (row: T, refusal: Refusal, error: unknown) => void,
): Promise<RefusedStatement | undefined> {
  const parts = [rows];
  let refused = 0;
  for (let part = parts.pop(); part; part = parts.pop()) {
    const failed = await refusedBy(() => statement(part));
    if (!failed) continue;
    const [row] = part;
    if (row === undefined) return failed;
    if (part.length > 1) {
      const half = part.length >> 1;
      parts.push(part.slice(half), part.slice(0, half));
      continue;
    }
    if (refused === 0) {
      const anyway = await refusedBy(() => statement([]));
      if (anyway) return anyway;
    }
    refuse(row, failed.refusal, failed.error);
    if (++refused >= most) return undefined;
  }
  return undefined;
}

/** Undefined when the statement went well; every other failure than a refusal is thrown. */
export async function refusedBy(statement: () => Promise<unknown>): Promise<RefusedStatement | undefined> {
  try {
    await statement();
    return undefined;
  } catch (error) {
    const refusal = refusalOf(error);
    if (!refusal) throw error;
    return { refusal, error };
  }
}
