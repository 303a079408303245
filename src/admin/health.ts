/** How one part of the process does. The detail is shown without a token: no addresses, no names of rows, no bodies. */
export interface PartHealth {
  name: string;
  ready: boolean;
  /** Why it is not ready, as one says it; null when it is. */
  reason: string | null;
  detail: Readonly<Record<string, unknown>>;
}

/** What `/readyz` answers: ready when every part is. */
export interface Readiness {
  ready: boolean;
  parts: PartHealth[];
}

export function readinessOf(parts: readonly PartHealth[]): Readiness {
  return { ready: parts.length > 0 && parts.every(({ ready }) => ready), parts: [...parts] };
}
