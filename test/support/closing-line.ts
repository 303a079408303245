import { writeSync } from 'node:fs';
import type { Reporter, SerializedError, TestModule } from 'vitest/node';

/** A reporter whose last line is `N passed, N failed`, for those who read the outcome by program. */
export default class ClosingLine implements Reporter {
  onTestRunEnd(modules: readonly TestModule[], unhandled: readonly SerializedError[]): void {
    const counts = { passed: 0, failed: unhandled.length, skipped: 0 };
    for (const module of modules) {
      let failed = 0;
      for (const test of module.children.allTests()) {
        const { state } = test.result();
        if (state === 'failed') failed++;
        else counts[state === 'passed' ? 'passed' : 'skipped']++;
      }
      // A file that cannot be loaded, or whose set-up fails, has no failed test of its own.
      counts.failed += module.state() === 'failed' ? Math.max(failed, 1) : failed;
    }
    const skipped = counts.skipped > 0 ? `, ${counts.skipped} skipped` : '';
    // Why at the exit: the other reporters print their summaries after this call.
    process.once('exit', () => writeSync(1, `${counts.passed} passed, ${counts.failed} failed${skipped}\n`));
  }
}
