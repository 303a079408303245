import { WaybillError } from './errors.js';

/** What node:tls says of a certificate, in words. Source: the Node.js manual, "X509 certificate error codes". */
const MEANINGS: Readonly<Record<string, string>> = {
  CERT_HAS_EXPIRED: 'its certificate has expired',
  CERT_NOT_YET_VALID: 'its certificate is not valid yet',
  CERT_REVOKED: 'its certificate is revoked',
  ERR_TLS_CERT_ALTNAME_INVALID: 'its certificate is for another name',
  DEPTH_ZERO_SELF_SIGNED_CERT: 'its certificate is self-signed, and not among those that we trust',
  SELF_SIGNED_CERT_IN_CHAIN: 'its certificate is of an authority that we do not trust',
  UNABLE_TO_GET_ISSUER_CERT: 'its certificate is of an authority that we do not trust',
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: 'its certificate is of an authority that we do not trust',
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: 'its certificate is of an authority that we do not trust',
};

/**
 * The error of a server whose certificate is refused by us (F85), or undefined for any other. A person must change
 * something; until then nothing was sent, no password either. `section` is the key of its configuration.
 */
export function untrustedServer(error: unknown, doing: string, section: string): WaybillError | undefined {
  const code = typeof error === 'object' && error !== null && 'code' in error ? error.code : undefined;
  const meaning = typeof code === 'string' ? MEANINGS[code] : undefined;
  if (meaning === undefined) return undefined;
  const text = error instanceof Error ? error.message : String(error);
  return new WaybillError('WAYBILL_SERVER_UNTRUSTED', `${doing}: ${meaning} (${text})`, {
    hint: `Renew the certificate, or correct the host of ${section}.url or ${section}.tls.caFile; waybill doctor shows dates.`,
    cause: error,
  });
}
