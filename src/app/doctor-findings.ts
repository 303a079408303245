/** One thing that doctor looked at. `mend` is what to do, null when there is nothing to be done. */
export interface Finding {
  /** Stable, for scripts. */
  id: string;
  /** `ok` with a mend: not checked; the mend says how to look by hand. */
  severity: 'ok' | 'warn' | 'fail';
  finding: string;
  mend: string | null;
}

export function ok(id: string, finding: string): Finding {
  return { id, severity: 'ok', finding, mend: null };
}

/** It cannot be looked at from here; `mend` is how to look by hand. Nothing is wrong as far as is known. */
export function note(id: string, finding: string, mend: string): Finding {
  return { id, severity: 'ok', finding, mend };
}

/** It works, and something about it will hurt some day. */
export function warn(id: string, finding: string, mend: string): Finding {
  return { id, severity: 'warn', finding, mend };
}

/** It does not work, or it puts the database at risk. */
export function fail(id: string, finding: string, mend: string): Finding {
  return { id, severity: 'fail', finding, mend };
}

/** Minutes or hours, for findings. */
export function ageText(ms: number): string {
  const minutes = Math.round(ms / 60_000);
  return minutes < 120 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
