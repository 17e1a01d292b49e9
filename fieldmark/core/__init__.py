"""What every package uses: errors, files, text, time, threads, messages, translations. Imports nothing of ours."""
