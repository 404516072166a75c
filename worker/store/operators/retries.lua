-- include: records, show, retrying
-- Show what a retry of these jobs would do. Refusals because of limits are only known when the retry is made.
-- Only reads.
-- ask: {jobs: [ID], rule (see `refuse_retry`)}
-- Answers {{job (see `show_job`), {'refused', code, ...} or {}}, ...}, without missing and unreadable jobs.
local ask = cjson.decode(ARGV[1])
local found = {}
for _, id in ipairs(ask.jobs) do
  local key = 'job:' .. id
  local job = look_up(key)
  local shown = job and attempt(key, show_job, id)
  if shown then found[#found + 1] = {shown, refuse_retry(job, ask.rule) or {}} end
end
return found
