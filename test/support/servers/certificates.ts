import { execFileSync } from 'node:child_process';
import { chmodSync, chownSync, copyFileSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { postgresAccount } from './find-postgres.js';

/** Files of a certificate authority and of servers that it has signed. */
export interface Authority {
  readonly caFile: string;
  /** Signs a certificate for a DNS name, for 2 days unless told; `expired` makes one whose time was over long ago. */
  sign(name: string, options?: { expired?: boolean; days?: number }): { certFile: string; keyFile: string };
}

/** Makes an authority in the folder by openssl. The private keys belong to the account that PostgreSQL runs as. */
export async function certificateAuthority(folder: string): Promise<Authority> {
  const account = await postgresAccount();
  const openssl = (...args: string[]): void => void execFileSync('openssl', args, { cwd: folder, stdio: 'pipe' });
  const own = (path: string): void => {
    chmodSync(path, 0o600);
    if (account.uid !== undefined) chownSync(path, account.uid, account.gid!);
  };
  mkdirSync(folder, { recursive: true });
  chmodSync(folder, 0o755);
  const newKey = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
  const caFile = join(folder, 'ca.crt');
  const caKey = join(folder, 'ca.key');
  openssl('req', '-x509', ...newKey, '-days', '120', '-subj', '/CN=test authority', '-keyout', caKey, '-out', caFile);
  writeFileSync(join(folder, 'index.txt'), '');
  writeFileSync(
    join(folder, 'ca.cnf'),
    `[ca]\ndefault_ca = own\n[own]\ndatabase = ${folder}/index.txt\nnew_certs_dir = ${folder}\nrand_serial = yes\n` +
      `default_md = sha256\npolicy = any\ncopy_extensions = copy\nunique_subject = no\n[any]\ncommonName = supplied\n`,
  );
  let count = 0;
  return {
    caFile,
    sign(name, { expired = false, days = 2 } = {}) {
      const base = join(folder, `server-${(count += 1)}`);
      const [certFile, keyFile, request] = [`${base}.crt`, `${base}.key`, `${base}.csr`];
      const subject = ['-subj', `/CN=${name}`, '-addext', `subjectAltName=DNS:${name}`];
      openssl('req', '-new', ...newKey, ...subject, '-keyout', keyFile, '-out', request);
      const time = expired ? ['-startdate', '20200101000000Z', '-enddate', '20200102000000Z'] : ['-days', String(days)];
      const ca = ['-config', 'ca.cnf', '-cert', caFile, '-keyfile', caKey];
      openssl('ca', '-batch', '-notext', ...ca, ...time, '-in', request, '-out', certFile);
      own(keyFile);
      return { certFile, keyFile };
    },
  };
}

/** Puts a certificate in the place of another, for a server that reads its files anew. */
export function replaceCertificate(
  place: { certFile: string; keyFile: string },
  by: { certFile: string; keyFile: string },
): void {
  copyFileSync(by.certFile, place.certFile);
  copyFileSync(by.keyFile, place.keyFile);
}
