/** What runs a statement: a client, a pooled client or a pool of `pg`, in the version that the application has. */
export interface Queryable {
  query(text: string, values?: unknown[]): Promise<{ rows: Record<string, unknown>[] }>;
}

/** A client of a pool. `release(true)` closes the connection. */
export interface PooledClient extends Queryable {
  release(destroy?: boolean): void;
  on(event: 'notification', call: (notification: { channel: string; payload?: string | undefined }) => void): unknown;
  on(event: 'error', call: (error: Error) => void): unknown;
  removeAllListeners(event: 'notification'): unknown;
  removeListener(event: 'error', call: (error: Error) => void): unknown;
}

/** A pool of `pg`. */
export interface ClientPool<C extends PooledClient = PooledClient> {
  connect(): Promise<C>;
  readonly options?: { readonly max?: number | undefined };
}

/** The SQLSTATE of an error of the server; undefined for any other. */
export function sqlState(error: unknown): string | undefined {
  const code: unknown = error instanceof Error && 'code' in error ? error.code : undefined;
  return typeof code === 'string' && /^[0-9A-Z]{5}$/.test(code) && 'severity' in (error as Error) ? code : undefined;
}
