import { z } from 'zod';
import { filePath, optionalChoice } from './leaves.js';

/** How a connection is protected. `insecure-*` must be asked for by name. */
const TLS_MODES = ['verify-full', 'verify-ca', 'insecure-no-verification', 'insecure-plaintext'] as const;

/** The section `tls` of whatever connects to another machine. */
export const tls = z.strictObject({
  mode: optionalChoice(
    TLS_MODES,
    { without: 'verify-full, but insecure-plaintext to this machine itself' },
    'How the connection is encrypted and whom it trusts. `verify-ca` does not compare the host name; `insecure-plaintext` sends passwords and messages readable.',
  ),
  caFile: filePath('PEM file of the authorities that may sign the server; without it, those of Node.js.'),
  certFile: filePath('PEM file of our own certificate, where the server asks for one. Needs `keyFile`.'),
  keyFile: filePath('PEM file of the key of `certFile`.'),
});

export type TlsMode = (typeof TLS_MODES)[number];

/** How one connection is protected; the mode is always resolved. Files are read when connecting. */
export interface TlsConfig {
  mode: TlsMode;
  caFile: string | undefined;
  certFile: string | undefined;
  keyFile: string | undefined;
}

/** A section with its mode settled: `fallback` where none is given. */
export function resolveTls(given: z.output<typeof tls>, fallback: TlsMode): TlsConfig {
  return { mode: given.mode ?? fallback, caFile: given.caFile, certFile: given.certFile, keyFile: given.keyFile };
}
