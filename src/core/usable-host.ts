import { WaybillError, type WaybillErrorCode } from './errors.js';

/** The host as messages call it, with its port: `db-1:5432`, `[::1]:5433`, or the folder of a Unix socket. */
export function hostName(urlText: string, defaultPort: number): string {
  const { hostname, port, searchParams } = new URL(urlText);
  const host = decodeURIComponent(searchParams.get('host') ?? hostname) || 'localhost';
  return host.startsWith('/') ? host : `${host}:${searchParams.get('port') ?? (port || defaultPort)}`;
}

/** A host that was tried in vain, and why. */
export interface Unusable {
  /** As messages call it; no credentials. */
  host: string;
  error: WaybillError;
}

interface Choice<T, U> {
  hosts: readonly [T, ...T[]];
  /** Used where a host's URL has no port. */
  defaultPort: number;
  /** Rejects with a WaybillError when the host cannot be used. */
  open: (host: T) => Promise<U>;
  /** The error that counts most when no host can be used; without any of these, the first host's. */
  gravest: readonly WaybillErrorCode[];
  /** Told of each host that is passed over before one is found. */
  onUnusable?: ((unusable: Unusable) => void) | undefined;
}

/**
 * Opens the first host that can be used, trying them in order. When none can, rejects with one error that names each
 * host and why; the error of a host that stands alone is passed as it is.
 */
export async function firstUsable<T extends { readonly url: string }, U>({
  hosts,
  defaultPort,
  open,
  gravest,
  onUnusable,
}: Choice<T, U>): Promise<U> {
  const unusable: Unusable[] = [];
  for (const host of hosts) {
    try {
      const opened = await open(host);
      for (const passedOver of unusable) onUnusable?.(passedOver);
      return opened;
    } catch (error) {
      if (hosts.length === 1 || !(error instanceof WaybillError)) throw error;
      unusable.push({ host: hostName(host.url, defaultPort), error });
    }
  }
  const codes = unusable.map(({ error }) => error.code);
  const code = gravest.find((candidate) => codes.includes(candidate)) ?? codes[0];
  const { error: counting } = unusable.find(({ error }) => error.code === code) as Unusable;
  const reasons = unusable.map(({ host, error }) => `${host}: ${error.message}`);
  throw new WaybillError(counting.code, `none of ${hosts.length} hosts can be used: ${reasons.join('; ')}`, {
    ...(counting.hint === undefined ? {} : { hint: counting.hint }),
    cause: counting,
  });
}
