/** Why PostgreSQL does not take a row, by what the user added to the table: names of its schema, nothing of the row. */
export interface Refusal {
  /** Null: no error, but the row is as it was. A trigger has returned NULL. */
  sqlState: string | null;
  table?: string;
  constraint?: string;
  column?: string;
  /** With the name of its table, as far as it is known; several where any of them may be it. */
  trigger?: string;
}

/** What a person is to do about it; for a line of the log. */
export function mendOf({ sqlState, trigger }: Refusal): string {
  return sqlState === null
    ? `a trigger of yours on this table${trigger === undefined ? '' : ` (${trigger})`} returns NULL for it, and so it silently stays as it is: let the trigger return the row, or drop it`
    : 'change or drop the constraint or trigger of yours that refuses it (`waybill doctor` lists them)';
}

/** Of these the server or the connection is to blame, also inside a trigger: the session ends, and all is tried again. */
const OF_THE_SERVER = /^(08|25|40|53|55|57|58|F0|XX)/;
/** Data exceptions, integrity constraints, and what PL/pgSQL raises. */
const OF_THE_ROW = /^(22|23|P0)/;

/**
 * What refused this one row: a constraint, or a trigger (then the error has a context, whatever its class). Undefined for
 * an error that says nothing about the row.
 */
export function refusalOf(error: unknown): Refusal | undefined {
  for (const { code, table, constraint, column, trigger, where } of causes(error)) {
    if (typeof code !== 'string' || !/^[0-9A-Z]{5}$/.test(code) || OF_THE_SERVER.test(code)) continue;
    if (!OF_THE_ROW.test(code) && (typeof where !== 'string' || where === '')) continue;
    return {
      sqlState: code,
      ...(typeof table === 'string' ? { table } : {}),
      ...(typeof constraint === 'string' ? { constraint } : {}),
      ...(typeof column === 'string' ? { column } : {}),
      // Found out by the store: PostgreSQL itself does not say it.
      ...(typeof trigger === 'string' ? { trigger } : {}),
    };
  }
  return undefined;
}

/** Lock timeout, deadlock or serialization failure: SQLSTATE 55P03, 40P01, 40001, also under the adapter's own error. */
export function isLockConflict(error: unknown): boolean {
  return causes(error).some(({ code }) => ['55P03', '40P01', '40001'].includes(String(code)));
}

/** The error and what is under it: the server's own one is the cause of the adapter's. */
function causes(error: unknown): Record<string, unknown>[] {
  const found: Record<string, unknown>[] = [];
  for (let each = error; typeof each === 'object' && each !== null; each = (each as { cause?: unknown }).cause) {
    found.push(each as Record<string, unknown>);
  }
  return found;
}
