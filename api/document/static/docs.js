// Remembers the language of samples on all pages, and shows search results while the user types. Both also work without it.
const KEY = 'docs-language'

function choose(language) {
  for (const input of document.querySelectorAll(`.samples input[value="${CSS.escape(language)}"]`)) input.checked = true
}

function kept() {
  try {
    return localStorage.getItem(KEY)
  } catch {
    return null // the browser blocks storage
  }
}

const language = kept()
if (language) choose(language)
document.addEventListener('change', ({ target }) => {
  if (!target.closest('.samples')) return
  const top = target.getBoundingClientRect().top
  choose(target.value)
  scrollBy(0, target.getBoundingClientRect().top - top) // samples above may have changed their height
  try {
    localStorage.setItem(KEY, target.value)
  } catch {
    // as above
  }
})

const query = document.getElementById('query')
const found = document.getElementById('found')
let timer
let latest = 0

async function search() {
  const number = ++latest
  const words = query.value.trim()
  if (!words) {
    found.hidden = true
    return
  }
  const response = await fetch(`${query.form.action}?${new URLSearchParams({ q: words })}`)
  if (!response.ok || number !== latest) return
  const page = new DOMParser().parseFromString(await response.text(), 'text/html')
  found.replaceChildren(...page.getElementById('results').children)
  found.hidden = false
}

query.addEventListener('input', () => {
  clearTimeout(timer)
  timer = setTimeout(search, 150)
})
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape') found.hidden = true
  if (event.key === '/' && !event.target.closest('input, textarea, select')) {
    event.preventDefault()
    query.focus()
  }
})
document.addEventListener('click', ({ target }) => {
  if (!found.contains(target) || target.closest('a')) found.hidden = true
})
