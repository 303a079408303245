import {
  forbiddenAs,
  isInside,
  isLoopback,
  parseAddress,
  parseNetwork,
  type Address,
  type Network,
} from './address.js';

/** Where a handler may be besides this machine: hosts by name, and networks that their addresses must be in. */
export interface AllowList {
  names: ReadonlySet<string>;
  networks: readonly Network[];
}

/** Sorts entries into names (`billing.internal`) and networks (`10.1.0.0/16`, `10.1.2.3`). */
export function allowList(entries: readonly string[]): AllowList {
  const sorted = entries.map((entry) => ({ name: entry.toLowerCase(), network: parseNetwork(entry) }));
  return {
    names: new Set(sorted.filter(({ network }) => !network).map(({ name }) => name)),
    networks: sorted.flatMap(({ network }) => network ?? []),
  };
}

/** Whether the host of a URL means this machine by its own word: `localhost`, 127.0.0.0/8 or ::1. */
export function isLoopbackHost(hostname: string): boolean {
  if (hostname === 'localhost') return true;
  const address = parseAddress(hostname);
  return address !== undefined && isLoopback(address);
}

/** Whether a name could be allowed at all, before it is resolved: listed itself, or some network is. */
export function mayResolve(hostname: string, { names, networks }: AllowList): boolean {
  return isLoopbackHost(hostname) || names.has(hostname) || networks.length > 0;
}

/**
 * Why the host of a URL may not be reached at this address; undefined when it may. A name that is not of this machine must
 * not lead to it, because what listens on loopback trusts whoever calls.
 */
export function refusal(hostname: string, address: Address, allow: AllowList): string | undefined {
  const forbidden = forbiddenAs(address);
  if (forbidden !== undefined) return forbidden;
  if (isLoopbackHost(hostname)) return isLoopback(address) ? undefined : 'not loopback';
  if (isLoopback(address)) return 'loopback';
  if (allow.networks.length > 0) {
    return allow.networks.some((network) => isInside(network, address)) ? undefined : 'in no network of the allow-list';
  }
  return allow.names.has(hostname) ? undefined : 'not in the allow-list';
}
