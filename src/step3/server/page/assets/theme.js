// Loaded before anything is drawn, so that a dark page never flashes white.
const chosenTheme = localStorage.getItem("step3.theme");
if (chosenTheme === "light" || chosenTheme === "dark") document.documentElement.dataset.theme = chosenTheme;
