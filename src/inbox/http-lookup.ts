import { lookup as systemLookup, type LookupAddress } from 'node:dns';
import { isIP, type LookupFunction } from 'node:net';
import { parseAddress } from '../core/address.js';
import { refusal, type AllowList } from '../core/target.js';

/** Resolves a name to all of its addresses; rejects like node:dns. */
export type Resolve = (hostname: string) => Promise<readonly LookupAddress[]>;

/** As the operating system resolves: hosts file, then DNS. */
export const systemResolve: Resolve = (hostname) =>
  new Promise((resolve, reject) => {
    systemLookup(hostname, { all: true }, (error, addresses) => (error ? reject(error) : resolve(addresses)));
  });

/** The host of a URL, without the brackets of IPv6. */
function hostOf(url: URL): string {
  return url.hostname.replace(/^\[(.*)\]$/, '$1');
}

/** Why a URL whose host is an address must not be called; undefined when it may, or when the host is a name. */
export function literalRefusal(url: URL, allow: AllowList): string | undefined {
  const host = hostOf(url);
  const address = parseAddress(host);
  if (!address) return undefined;
  const why = refusal(host, address, allow);
  return why === undefined ? undefined : refusalText(host, [`${host} (${why})`]);
}

/**
 * The lookup of a connection: it gives only addresses that may be reached, and the connection goes to these and no other,
 * so that a name which changes between the check and the connection (DNS rebinding) gains nothing. Of several addresses
 * those that may not be reached are left out; when none is left, the connection fails.
 */
export function guardedLookup(resolve: Resolve, allow: AllowList): LookupFunction {
  return (hostname, options, callback) => {
    resolve(hostname).then(
      (found) => {
        const usable: LookupAddress[] = [];
        const refused: string[] = [];
        for (const { address } of found) {
          const parsed = parseAddress(address);
          const why = parsed ? refusal(hostname, parsed, allow) : 'no address';
          if (why === undefined) usable.push({ address, family: isIP(address) });
          else refused.push(`${address} (${why})`);
        }
        const [first] = usable;
        if (!first) callback(new Error(refusalText(hostname, refused)), '', 0);
        else if (options.all) callback(null, usable);
        else callback(null, first.address, first.family);
      },
      (error: unknown) => callback(error as NodeJS.ErrnoException, '', 0),
    );
  };
}

function refusalText(host: string, refused: readonly string[]): string {
  return refused.length === 0
    ? `${host} has no address`
    : `${host} leads to ${refused.join(', ')}, where no handler may be`;
}
