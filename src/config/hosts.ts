const AUTHORITY = /^([a-z][a-z0-9+.-]*:\/\/)([^/?#]*)(.*)$/is;

/**
 * One URL for each host of a URL that may list several, `scheme://user:password@host1:5432,host2:5433/path`, in their
 * order. Never fails: what is no URL comes back as it is, for a check to say so.
 */
export function hostUrls(urlText: string): [string, ...string[]] {
  const [, scheme = '', authority = '', rest = ''] = AUTHORITY.exec(urlText) ?? [];
  // The last @ ends the credentials, as for every URL parser.
  const at = authority.lastIndexOf('@') + 1;
  const hosts = authority.slice(at).split(',');
  if (hosts.length === 1) return [urlText];
  const [first = '', ...others] = hosts.map((host) => `${scheme}${authority.slice(0, at)}${host.trim()}${rest}`);
  return [first, ...others];
}

/** Whether every host is on this machine: loopback addresses and Unix sockets. */
export function staysLocal(urlText: string): boolean {
  return hostUrls(urlText).every(isLocal);
}

function isLocal(urlText: string): boolean {
  const parsed = new URL(urlText);
  const host = decodeURIComponent(parsed.searchParams.get('host') ?? parsed.hostname);
  return (
    host === '' ||
    host.startsWith('/') ||
    host === 'localhost' ||
    host === '[::1]' ||
    host === '::1' ||
    /^127(\.\d{1,3}){3}$/.test(host)
  );
}
