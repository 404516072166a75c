-- include: records, show, retrying
-- What a retry of these jobs would do. What the limits of their accounts and servers refuse is seen only by the retry.
-- Only reads.
-- ask: {jobs: [ID], rule (see `refuse_retry`)}
-- Answers {{job (see `show_job`), {'refused', code, ...} or {}}, ...}, without what is missing or can't be read.
local ask = cjson.decode(ARGV[1])
local found = {}
for _, id in ipairs(ask.jobs) do
  local key = 'job:' .. id
  local job = look_up(key)
  local shown = job and attempt(key, show_job, id)
  if shown then found[#found + 1] = {shown, refuse_retry(job, ask.rule) or {}} end
end
return found
