// Makes a clone ready to run: installs the packages that package-lock.json names when any is missing or another version,
// then builds. Plain Node without packages, because it runs before there are any. Importing it does the work.
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const oldest = [20, 19];

const [major, minor] = process.versions.node.split('.').map(Number);
if (major < oldest[0] || (major === oldest[0] && minor < oldest[1])) {
  fail(`Node.js ${oldest.join('.')} or newer is needed; this is ${process.versions.node}.`);
}
if (!packagesAreInstalled()) {
  say('Installing packages, once (npm ci --ignore-scripts) ...');
  const { stdout } = npm(['ci', '--ignore-scripts', '--include=dev', '--no-audit', '--no-fund', '--loglevel=error']);
  say(`  ${stdout.trim().split('\n').at(-1)}`);
}
npm(['run', '--silent', 'build']);

/** Whether node_modules holds every package of the lock file in its version; optional ones depend on the platform. */
function packagesAreInstalled() {
  const wanted = packagesOf('package-lock.json');
  const installed = packagesOf('node_modules/.package-lock.json');
  if (!wanted || !installed) return false;
  return Object.entries(wanted).every(
    ([path, { version, optional }]) => path === '' || optional || installed[path]?.version === version,
  );
}

function packagesOf(lockFile) {
  try {
    return JSON.parse(readFileSync(new URL(`../${lockFile}`, import.meta.url), 'utf8')).packages;
  } catch {
    return undefined;
  }
}

/** Runs npm quietly; when it fails, says what it said and ends. */
function npm(args) {
  const done = spawnSync('npm', args, { cwd: root, encoding: 'utf8', maxBuffer: 1 << 26 });
  if (done.error) fail(`npm cannot be run: ${done.error.message}`);
  if (done.status !== 0) fail(`${done.stdout}${done.stderr}\nnpm ${args.join(' ')} failed.`);
  return done;
}

function say(text) {
  process.stderr.write(`${text}\n`);
}

function fail(text) {
  say(text);
  process.exit(1);
}
